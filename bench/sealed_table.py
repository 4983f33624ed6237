"""The ways to keep rows in PostgreSQL that `bench.sealing` compares.

All have the table that the datasets service has, write one chunk of 1 MiB per
transaction as it does, and read one chunk per query as it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol
from uuid import uuid4

from casemate.sealing.keys import DataKey
from casemate.sealing.rows import BatchContext, SealedBatch, open_rows, open_rows_in_turns, seal_batch, seal_rows

if TYPE_CHECKING:
    import asyncpg

    from casemate.storage.pool import Connection

_COLUMNS: Final = ("upload", "batch", "ordinal", "sealed")
_TABLE: Final = """
CREATE TABLE {name} (
    upload uuid NOT NULL, batch integer NOT NULL, ordinal bigint NOT NULL, sealed bytea NOT NULL,
    PRIMARY KEY (upload, batch, ordinal)
) WITH (fillfactor = 100);
ALTER TABLE {name} ALTER COLUMN sealed SET STORAGE EXTERNAL
"""
_FETCHED_TOGETHER: Final = 4

Batches = Sequence[Sequence[bytes]]


class Side(Protocol):
    """One way of writing and reading the same rows."""

    async def prepare(self) -> None:
        """Makes the table."""
        ...

    async def write(self, batches: Batches) -> None:
        """Every batch, durable."""
        ...

    async def read(self) -> int:
        """Every row of the last `write`, as plaintext; their number."""
        ...

    async def clear(self) -> None:
        """Empties the table, so that it does not grow from turn to turn."""
        ...


class Plain:
    """Rows as they are."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._upload = uuid4()
        self._count = 0
        # The name is a constant of ours.
        self._select = f"SELECT sealed FROM {name} WHERE upload = $1 AND batch = $2 ORDER BY ordinal"  # noqa: S608

    async def prepare(self) -> None:
        """See `Side`."""
        await self._connection.execute(_TABLE.format(name=self._name))

    async def clear(self) -> None:
        """See `Side`."""
        await self._connection.execute(f"TRUNCATE {self._name}")

    async def write(self, batches: Batches) -> None:
        """See `Side`."""
        self._upload, self._count = uuid4(), len(batches)
        for number, rows in enumerate(batches):
            await self._copy(number, number * len(rows), rows)

    async def read(self) -> int:
        """See `Side`."""
        found = 0
        for number in range(self._count):
            found += len([record[0] for record in await self._fetch(number)])
        return found

    async def _copy(self, number: int, first_ordinal: int, rows: Iterable[bytes]) -> None:
        async with self._connection.transaction():
            await self._connection.copy_records_to_table(
                self._name,
                columns=_COLUMNS,
                records=((self._upload, number, ordinal, row) for ordinal, row in enumerate(rows, first_ordinal)),
            )

    def _fetch(self, number: int) -> asyncio.Task[list[asyncpg.Record]]:
        return asyncio.ensure_future(self._connection.fetch(self._select, self._upload, number))


class Sealed(Plain):
    """Rows sealed and opened by us: each sealed as it is copied; a batch opened while the next one arrives."""

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(connection, name)
        self._key = DataKey.generate()
        # Headers alone, as a service keeps no batch that it has stored.
        self._stored: list[SealedBatch] = []

    async def write(self, batches: Batches) -> None:
        """See `Side`."""
        self._upload, self._stored = uuid4(), []
        for number, rows in enumerate(batches):
            first_ordinal = number * len(rows)
            batch = seal_rows(self._key, _context(number), rows, first_ordinal=first_ordinal)
            await self._copy(number, first_ordinal, batch.rows)
            self._stored.append(
                SealedBatch(salt=batch.salt, commitment=batch.commitment, first_ordinal=first_ordinal, rows=())
            )

    async def read(self) -> int:
        """See `Side`."""
        found = 0
        fetching = self._fetch(0)
        for number in range(len(self._stored)):
            rows = [record[0] for record in await fetching]
            if number + 1 < len(self._stored):
                fetching = self._fetch(number + 1)
                await asyncio.sleep(0)  # sends the query
            found += len(await self._open_meanwhile(number, rows))
        return found

    async def _open_meanwhile(self, number: int, rows: list[bytes]) -> list[bytes]:
        head = self._stored[number]
        await open_rows_in_turns(
            self._key,
            _context(number),
            rows,
            salt=head.salt,
            commitment=head.commitment,
            first_ordinal=head.first_ordinal,
        )
        return rows

    def _open(self, number: int, rows: list[bytes]) -> list[bytes]:
        head = self._stored[number]
        open_rows(
            self._key,
            _context(number),
            rows,
            salt=head.salt,
            commitment=head.commitment,
            first_ordinal=head.first_ordinal,
        )
        return rows


class Threaded(Sealed):
    """In a thread, the next batch is sealed while this one is copied, and this one opened while the next is fetched."""

    async def write(self, batches: Batches) -> None:
        """See `Side`."""
        self._upload, self._stored = uuid4(), []
        sealing = asyncio.ensure_future(asyncio.to_thread(self._seal, 0, batches[0]))
        for number in range(len(batches)):
            batch = await sealing
            if number + 1 < len(batches):
                sealing = asyncio.ensure_future(asyncio.to_thread(self._seal, number + 1, batches[number + 1]))
            await self._copy(number, batch.first_ordinal, batch.rows)
            self._stored.append(replace(batch, rows=()))

    async def read(self) -> int:
        """See `Side`."""
        found = 0
        fetching = self._fetch(0)
        for number in range(len(self._stored)):
            rows = [record[0] for record in await fetching]
            if number + 1 < len(self._stored):
                fetching = self._fetch(number + 1)
            found += len(await asyncio.to_thread(self._open, number, rows))
        return found

    def _seal(self, number: int, rows: Sequence[bytes]) -> SealedBatch:
        return seal_batch(self._key, _context(number), rows, first_ordinal=number * len(rows))


class InTurn(Sealed):
    """Nothing at the same time: a batch is sealed, then copied; fetched, then opened."""

    async def write(self, batches: Batches) -> None:
        """See `Side`."""
        self._upload, self._stored = uuid4(), []
        for number, rows in enumerate(batches):
            batch = seal_batch(self._key, _context(number), rows, first_ordinal=number * len(rows))
            await self._copy(number, batch.first_ordinal, batch.rows)
            self._stored.append(replace(batch, rows=()))

    async def read(self) -> int:
        """See `Side`."""
        found = 0
        for number in range(len(self._stored)):
            found += len(self._open(number, [record[0] for record in await self._fetch(number)]))
        return found


class AtOnce(Sealed):
    """The next batch is asked for, then this one opened with no turn for what arrives meanwhile."""

    async def _open_meanwhile(self, number: int, rows: list[bytes]) -> list[bytes]:
        return self._open(number, rows)


class FetchedTogether(Sealed):
    """Four batches a query."""

    async def read(self) -> int:
        """See `Side`."""
        query = (
            f"SELECT batch, sealed FROM {self._name} "  # noqa: S608  # as above
            "WHERE upload = $1 AND batch >= $2 AND batch < $3 ORDER BY batch, ordinal"
        )
        found = 0
        for first in range(0, len(self._stored), _FETCHED_TOGETHER):
            records = await self._connection.fetch(query, self._upload, first, first + _FETCHED_TOGETHER)
            rows: dict[int, list[bytes]] = {}
            for number, row in records:
                rows.setdefault(number, []).append(row)
            found += sum(len(self._open(number, some)) for number, some in rows.items())
        return found


class PgCrypto(Plain):
    """Rows sealed and opened by pgcrypto's `pgp_sym_encrypt_bytea` with aes256, many a statement."""

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(connection, name)
        self._passphrase = DataKey.generate().reveal().hex()
        self._select = (
            f"SELECT pgp_sym_decrypt_bytea(sealed, $3) FROM {name} "  # noqa: S608  # as above
            "WHERE upload = $1 AND batch = $2 ORDER BY ordinal"
        )

    async def prepare(self) -> None:
        """See `Side`."""
        await self._connection.execute("CREATE EXTENSION IF NOT EXISTS pgcrypto")
        await super().prepare()

    def _fetch(self, number: int) -> asyncio.Task[list[asyncpg.Record]]:
        return asyncio.ensure_future(self._connection.fetch(self._select, self._upload, number, self._passphrase))

    async def _copy(self, number: int, first_ordinal: int, rows: Iterable[bytes]) -> None:
        await self._connection.execute(
            f"INSERT INTO {self._name} SELECT $1, $2, $3 + i - 1, "  # noqa: S608  # as above
            "pgp_sym_encrypt_bytea(row, $4, 'cipher-algo=aes256') "
            "FROM unnest($5::bytea[]) WITH ORDINALITY AS given (row, i)",
            *(self._upload, number, first_ordinal, self._passphrase, list(rows)),
        )


def _context(number: int) -> BatchContext:
    return BatchContext(tenant="acme", dataset="digits", version=1, batch=number, schema_sha256=bytes(32))


SIDES: Final[dict[str, Callable[[Connection, str], Side]]] = {
    "plain": Plain,
    "sealed": Sealed,
    "threaded": Threaded,
    "in turn": InTurn,
    "at once": AtOnce,
    "fetched together": FetchedTogether,
}
"""Those that need nothing but PostgreSQL."""
