"""The transparency log in PostgreSQL; all SQL about it is here.

The head carries a MAC, so an entry edited by SQL no longer fits the root that
this service signs: each proof that leaves here was verified against that root.
Deleting the newest entries and putting back an old head is found by whoever kept
a checkpoint, the witness among them, not here.

If this fails: the log signs a history that was rewritten. The witness does not
cosign it, and a kept checkpoint shows it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from casemate.errors import DigestMismatch, OutOfRange, StoredDataUnreadable
from casemate.signing import merkle, tiles
from services.datasets.database import connected, transaction
from services.datasets.log import LogHead, entry_bytes
from services.datasets.log_nodes import complete_tiles, proven, read_nodes, require_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    import asyncpg

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms

_HEAD = "SELECT size, frontier, mac FROM log_head WHERE name = 'log'"
_EMPTY: Final = LogHead()
_SALT_BYTES: Final = 16
_ENTRIES_BYTES: Final = 3 << 20
"""Most bytes of entries in one answer: a message has 4 MiB."""


async def holds_rows(pool: Pool) -> bool:
    """Whether there is anything yet that the authority key has to verify: the log's head is the first."""
    async with connected(pool) as connection:
        return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM log_head)"))


class LogStore:
    """An append-only Merkle tree over entries."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, alarms: Alarms, clock: Clock) -> None:
        self._pool = pool
        self._authority = authority
        self._alarms = alarms
        self._clock = clock
        self._disputed = False

    def dispute(self, *, disputed: bool) -> None:
        """Stops appending, and so every receipt, while the witness has seen another history than this one."""
        self._disputed = disputed

    async def prepare(self) -> None:
        """Writes the head of the empty log, once.

        Raises:
            StoredDataUnreadable: there are entries but no head, or the head does not verify.
        """
        async with transaction(self._pool) as connection:
            empty = LogHead()
            await connection.execute(
                "INSERT INTO log_head (name, size, frontier, mac) SELECT 'log', $1, $2, $3 "
                "WHERE NOT EXISTS (SELECT FROM log_entries) ON CONFLICT (name) DO NOTHING",
                *(empty.size, empty.to_bytes(), self._mac(empty)),
            )
            await self.head_of(connection)

    async def append(self, connection: Connection, kind: str, body: Mapping[str, object], *, by: str) -> int:
        """Appends in the caller's transaction and gives the index. Appends wait for one another.

        Args:
            connection: inside a transaction.
            kind: what happened.
            body: names and digests, never rows or keys.
            by: the service that says so.

        Raises:
            StoredDataUnreadable: the witness has seen another history: the next index was given out before.
        """
        if self._disputed:
            raise StoredDataUnreadable("the log was rolled back or rewritten; nothing is appended to it")
        head = self._verified(await connection.fetchrow(_HEAD + " FOR UPDATE"))
        entry = entry_bytes(kind, body, by=by, at=self._clock.now(), salt=secrets.token_bytes(_SALT_BYTES))
        leaf, *nodes = completed = head.completed(merkle.leaf_hash(entry))
        await connection.execute(
            "INSERT INTO log_entries (index, entry, leaf_hash) VALUES ($1, $2, $3)", head.size, entry, leaf[2]
        )
        if nodes:
            await connection.executemany("INSERT INTO log_nodes (level, index, hash) VALUES ($1, $2, $3)", nodes)
        after = head.after(completed)
        await connection.execute(
            "UPDATE log_head SET size = $1, frontier = $2, mac = $3 WHERE name = 'log'",
            *(after.size, after.to_bytes(), self._mac(after)),
        )
        return head.size

    async def append_alone(self, kind: str, body: Mapping[str, object], *, by: str) -> int:
        """Appends in a transaction of its own; durable when it returns."""
        async with transaction(self._pool) as connection:
            return await self.append(connection, kind, body, by=by)

    async def extend(self, entries: Iterable[bytes], *, size: int, root: bytes) -> int:
        """Appends what a newer copy of this very log has behind what is here, in one transaction; how many it were.

        Args:
            entries: all of them, from the first on.
            size: how many they have to be.
            root: what they have to come to.

        Raises:
            StoredDataUnreadable: they are not that many, do not come to that root, or do not begin with what is here.
        """
        async with transaction(self._pool) as connection:
            head = self._verified(await connection.fetchrow(_HEAD + " FOR UPDATE"))
            passing, page = LogHead(), list[tuple[LogHead, bytes]]()
            for entry in entries:
                if passing.size == head.size and passing != head:
                    break
                if passing.size >= head.size:
                    page.append((passing, entry))
                passing = passing.appended(merkle.leaf_hash(entry))
                if len(page) == tiles.TILE_WIDTH:
                    await _insert(connection, page)
                    page.clear()
            await _insert(connection, page)
            if (passing.size, passing.root) != (size, root) or (size <= head.size and passing != head):
                raise StoredDataUnreadable(
                    f"the newer log of {size} entries is not the {head.size} of this one and more"
                )
            await connection.execute(
                "UPDATE log_head SET size = $1, frontier = $2, mac = $3 WHERE name = 'log'",
                *(passing.size, passing.to_bytes(), self._mac(passing)),
            )
            # The index of the models that its entries name is built again at the next start.
            await connection.execute("DELETE FROM trained_models_head")
            return passing.size - head.size

    async def lock(self, connection: Connection) -> None:
        """Holds off all appends until the caller's transaction ends."""
        self._verified(await connection.fetchrow(_HEAD + " FOR UPDATE"))

    async def scan(self, connection: Connection, *, after: LogHead = _EMPTY) -> AsyncIterator[tuple[int, bytes]]:
        """Every entry behind `after` with its index, in order; none is given out before it is proven to be the tree's.

        Reads 32 bytes for each 256 entries first, then the entries, 256 at a time.

        Args:
            connection: inside a transaction that sees one state throughout, or holds `lock`.
            after: a head that this log had once; what is behind it is read alone.

        Raises:
            StoredDataUnreadable: an entry or a node is not that of the head's tree, or `after` was never its head.
        """
        signed, seen = await self.head_of(connection), after
        with self._alarms.on_integrity():
            complete = await complete_tiles(connection, signed, after)
        query = "SELECT index, entry FROM log_entries WHERE index >= $1 ORDER BY index"
        entries = await connection.cursor(query, after.size)
        while rows := await entries.fetch(tiles.TILE_WIDTH - seen.size % tiles.TILE_WIDTH):
            first, completed = seen.size, list[tuple[int, int, bytes]]()
            for row in rows:
                completed = seen.completed(merkle.leaf_hash(row["entry"] or b""))
                seen = seen.after(completed)
            whole = seen.size % tiles.TILE_WIDTH == 0
            proven_tile = (
                completed[tiles.TILE_HEIGHT][2] == complete.get(first >> tiles.TILE_HEIGHT) if whole else False
            )
            self._require(genuine=proven_tile or seen == signed)
            self._require(genuine=[row["index"] for row in rows] == list(range(first, seen.size)))
            for row in rows:
                yield row["index"], row["entry"]
        self._require(genuine=seen == signed)

    def _require(self, *, genuine: bool) -> None:
        with self._alarms.on_integrity():
            if not genuine:
                raise StoredDataUnreadable("the log's entries do not give its root")

    async def head_of(self, connection: Connection) -> LogHead:
        """The head, as a transaction of the caller's sees it."""
        return self._verified(await connection.fetchrow(_HEAD))

    async def head(self) -> LogHead:
        """The present head."""
        async with connected(self._pool) as connection:
            return await self.head_of(connection)

    async def entry(self, index: int, tree_size: int) -> tuple[bytes, list[bytes], int]:
        """One entry, its inclusion proof, and the size of the tree that it is for.

        Reads O(log n) nodes, and verifies the proof up to the signed head first.

        Args:
            index: counted from 0.
            tree_size: zero for the present size.

        Raises:
            OutOfRange: no such entry in a tree of that size, or no such size yet.
            StoredDataUnreadable: what is stored does not give the stored root.
        """
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            head = await self.head_of(connection)
            size = tree_size or head.size
            if not 0 <= index < size <= head.size:
                raise OutOfRange(f"entry {index} of a tree of {size}; the log has {head.size}")
            entry = await connection.fetchval("SELECT entry FROM log_entries WHERE index = $1", index)
            with self._alarms.on_integrity():
                proof, root, _ = await proven(connection, head, tiles.inclusion_ranges(index, size), size)
                try:
                    merkle.verify_inclusion(merkle.leaf_hash(entry or b""), index, size, proof, root)
                except DigestMismatch as error:
                    raise StoredDataUnreadable("the log's entries do not give its root") from error
        return entry, proof, size

    async def consistency(self, first_size: int, second_size: int) -> tuple[list[bytes], int]:
        """The proof that the first tree is the beginning of the second, and the size of the second.

        Args:
            first_size: at least 1.
            second_size: zero for the present size.

        Raises:
            OutOfRange: there are no such sizes.
            StoredDataUnreadable: what is stored does not give the stored root.
        """
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            head = await self.head_of(connection)
            size = second_size or head.size
            if size > head.size:
                raise OutOfRange(f"a tree of {size}; the log has {head.size}")
            ranges = tiles.consistency_ranges(first_size, size)
            with self._alarms.on_integrity():
                proof, root, nodes = await proven(connection, head, ranges, size, also=(0, first_size))
                try:
                    merkle.verify_consistency(first_size, size, tiles.range_hash(nodes, (0, first_size)), root, proof)
                except DigestMismatch as error:
                    raise StoredDataUnreadable("the log's nodes do not give its root") from error
        return proof, size

    async def tile(self, level: int, index: int) -> bytes:
        """The hashes of a tile, one behind the other. The reader verifies them against a checkpoint.

        Raises:
            OutOfRange: the log does not reach that far.
        """
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            head = await self.head_of(connection)
            first, end = tiles.tile_range(level, index, head.size)
            wanted = [(level * tiles.TILE_HEIGHT, at) for at in range(first, end)]
            found = await read_nodes(connection, wanted)
        with self._alarms.on_integrity():
            return b"".join(tiles.range_hash(found, (at << height, at + 1 << height)) for height, at in wanted)

    async def entries(self, first: int) -> list[tuple[bytes, bytes]]:
        """Entries and their leaf hashes, in order from one on: at least one, at most 256, no more than a message holds.

        Raises:
            OutOfRange: the log does not reach that far.
            StoredDataUnreadable: what is stored there does not give the stored root.
        """
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            head = await self.head_of(connection)
            if not 0 <= first < head.size:
                raise OutOfRange(f"no entry {first}")
            rows = await connection.fetch(
                "SELECT index, entry, leaf_hash FROM log_entries WHERE index >= $1 ORDER BY index LIMIT $2",
                *(first, tiles.TILE_WIDTH),
            )
            with self._alarms.on_integrity():
                await require_part(connection, head, first, rows)
        found: list[tuple[bytes, bytes]] = []
        total = 0
        for row in rows:
            total += len(row["entry"])
            if found and total > _ENTRIES_BYTES:
                break
            found.append((row["entry"], row["leaf_hash"]))
        return found

    async def keep_cosigned(self, size: int, note: str) -> None:
        """Keeps the checkpoint that the witness cosigned, unless a larger one is kept."""
        async with connected(self._pool) as connection:
            await connection.execute(
                "INSERT INTO log_cosigned (name, size, note) VALUES ('log', $1, $2) "
                "ON CONFLICT (name) DO UPDATE SET size = $1, note = $2 WHERE log_cosigned.size <= $1",
                *(size, note),
            )

    async def cosigned(self) -> tuple[int, str]:
        """Size and note of the last checkpoint that was cosigned; zero and nothing if there is none."""
        async with connected(self._pool) as connection:
            row = await connection.fetchrow("SELECT size, note FROM log_cosigned WHERE name = 'log'")
        return (0, "") if row is None else (row["size"], row["note"])

    def _mac(self, head: LogHead) -> bytes:
        return self._authority.mac("log_head", "log", {"size": head.size, "frontier": head.to_bytes()})

    def _verified(self, record: asyncpg.Record | None) -> LogHead:
        with self._alarms.on_authority():
            if record is None:
                raise StoredDataUnreadable("the log has no head")
            columns = {"size": record["size"], "frontier": record["frontier"]}
            self._authority.verify("log_head", "log", columns, record["mac"])
            return LogHead.parse(record["size"], record["frontier"])


async def _insert(connection: Connection, page: Sequence[tuple[LogHead, bytes]]) -> None:
    """Stores entries and the nodes that each completes, behind the head that it came after."""
    leaves, nodes = [], []
    for head, entry in page:
        leaf, *completed = head.completed(merkle.leaf_hash(entry))
        leaves.append((head.size, entry, leaf[2]))
        nodes += completed
    await connection.executemany("INSERT INTO log_entries (index, entry, leaf_hash) VALUES ($1, $2, $3)", leaves)
    await connection.executemany("INSERT INTO log_nodes (level, index, hash) VALUES ($1, $2, $3)", nodes)
