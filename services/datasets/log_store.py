"""The transparency log in PostgreSQL; all SQL about it is here.

The head carries a MAC, so an entry edited by SQL no longer fits the root that
this service signs. Deleting the newest entries and putting back an old head is
found by whoever kept a checkpoint, not here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import OutOfRange, StoredDataUnreadable
from casemate.signing import merkle
from services.datasets.database import connected, transaction
from services.datasets.log import LogHead, entry_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms

_HEAD = "SELECT size, frontier, mac FROM log_head WHERE name = 'log'"


class LogStore:
    """An append-only Merkle tree over entries."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, alarms: Alarms, clock: Clock) -> None:
        self._pool = pool
        self._authority = authority
        self._alarms = alarms
        self._clock = clock

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
            self._verified(await connection.fetchrow(_HEAD))

    async def append(self, connection: Connection, kind: str, body: Mapping[str, object], *, by: str) -> int:
        """Appends in the caller's transaction and gives the index. Appends wait for one another.

        Args:
            connection: inside a transaction.
            kind: what happened.
            body: names and digests, never rows or keys.
            by: the service that says so.
        """
        head = self._verified(await connection.fetchrow(_HEAD + " FOR UPDATE"))
        entry = entry_bytes(kind, body, by=by, at=self._clock.now())
        leaf_hash = merkle.leaf_hash(entry)
        await connection.execute(
            "INSERT INTO log_entries (index, entry, leaf_hash) VALUES ($1, $2, $3)", head.size, entry, leaf_hash
        )
        after = head.appended(leaf_hash)
        await connection.execute(
            "UPDATE log_head SET size = $1, frontier = $2, mac = $3 WHERE name = 'log'",
            *(after.size, after.to_bytes(), self._mac(after)),
        )
        return head.size

    async def append_alone(self, kind: str, body: Mapping[str, object], *, by: str) -> int:
        """Appends in a transaction of its own; durable when it returns."""
        async with transaction(self._pool) as connection:
            return await self.append(connection, kind, body, by=by)

    async def head(self) -> LogHead:
        """The present head."""
        async with connected(self._pool) as connection:
            return self._verified(await connection.fetchrow(_HEAD))

    async def entry(self, index: int, tree_size: int) -> tuple[bytes, list[bytes], int]:
        """One entry, its inclusion proof, and the size of the tree that it is for.

        The tree is recomputed up to the signed head first: 32 bytes and one hash an
        entry.

        Args:
            index: counted from 0.
            tree_size: zero for the present size.

        Raises:
            OutOfRange: no such entry in a tree of that size, or no such size yet.
            StoredDataUnreadable: the stored entries do not give the stored root.
        """
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            head = self._verified(await connection.fetchrow(_HEAD))
            size = tree_size or head.size
            if not 0 <= index < size <= head.size:
                raise OutOfRange(f"entry {index} of a tree of {size}; the log has {head.size}")
            records = await connection.fetch("SELECT leaf_hash FROM log_entries ORDER BY index")
            entry = await connection.fetchval("SELECT entry FROM log_entries WHERE index = $1", index)
        leaves: list[bytes] = [record["leaf_hash"] for record in records]
        with self._alarms.on_integrity():
            if len(leaves) != head.size or merkle.root(leaves) != head.root or merkle.leaf_hash(entry) != leaves[index]:
                raise StoredDataUnreadable("the log's entries do not give its root")
        return entry, merkle.inclusion_proof(leaves[:size], index), size

    def _mac(self, head: LogHead) -> bytes:
        return self._authority.mac("log_head", "log", {"size": head.size, "frontier": head.to_bytes()})

    def _verified(self, record: asyncpg.Record | None) -> LogHead:
        with self._alarms.on_authority():
            if record is None:
                raise StoredDataUnreadable("the log has no head")
            columns = {"size": record["size"], "frontier": record["frontier"]}
            self._authority.verify("log_head", "log", columns, record["mac"])
            return LogHead.parse(record["size"], record["frontier"])
