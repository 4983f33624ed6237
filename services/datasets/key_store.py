"""Wrapped data keys in their own database; all SQL about them is here.

What a key is for is never read from its row: the caller says it, from a row that
carries a MAC, and the KEK binds it. A key moved to another row does not unwrap.
Unwrapped keys stay in a bounded ring, from which rotation and shredding drop them.

If this fails: data keys leak to who reads this process's memory, never to who
reads the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

from casemate.errors import StoredDataUnreadable
from casemate.sealing.key_ring import DataKeyRing
from casemate.sealing.keys import KeyContext, WrappedKey
from casemate.sealing.rewrapping import StoredWrap
from services.datasets.database import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from casemate.clock import Clock
    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.sealing.key_ring import RingLimits
    from casemate.sealing.keys import DataKey
    from casemate.storage.pool import Pool

LOG_CONTEXT = KeyContext(purpose="log-signing", tenant="", name="log", version=1)
"""The seed of the log's signing key is kept like a data key."""

_ROWS_PURPOSE: Final = "dataset-rows"
_PAGE: Final = 256
"""Wraps read, and replaced, at a time."""


class DataKeyGone(StoredDataUnreadable):
    """The key was shredded, or its row was lost."""


def rows_context(tenant: str, dataset: str, version: int) -> KeyContext:
    """What a dataset version's data key is bound to."""
    return KeyContext(purpose=_ROWS_PURPOSE, tenant=tenant, name=dataset, version=version)


class DataKeyStore:
    """Makes, keeps, unwraps, rewraps and deletes data keys. Implements `rewrapping.WrapStore`.

    Args:
        pool: the data-keys database.
        kek: wraps them.
        clock: for their ages.
        limits: how much stays unwrapped in memory for how long.
    """

    def __init__(self, *, pool: Pool, kek: KeyEncryptionKey, clock: Clock, limits: RingLimits | None = None) -> None:
        self._pool = pool
        self._kek = kek
        self._clock = clock
        self.ring = DataKeyRing(kek=kek, clock=clock, limits=limits)

    async def create(self, context: KeyContext) -> UUID:
        """A new data key, durable in its wrapped form; `open` gives it out."""
        _, wrapped = await self._kek.generate_data_key(context)
        identifier = uuid4()
        await self._insert(identifier, context, wrapped)
        return identifier

    async def open(self, identifier: UUID, context: KeyContext, *, use_bytes: int = 0) -> DataKey:
        """The data key of a row, unwrapped for this context. To be asked for each batch anew, and not kept.

        Raises:
            DataKeyGone: there is none.
            StoredDataUnreadable: it was not wrapped for this context.
            FailedPrecondition: the key-encryption key is refused by its provider.
            Unavailable: it does not answer, and the key is not in memory.
        """

        async def load() -> WrappedKey:
            async with connected(self._pool) as connection:
                wrapped = await connection.fetchval("SELECT wrapped FROM data_keys WHERE id = $1", identifier)
            if wrapped is None:
                raise DataKeyGone(f"data key {identifier} is gone")
            return WrappedKey.parse(wrapped)

        return await self.ring.key(str(identifier), context, load, use_bytes=use_bytes)

    async def delete(self, identifiers: Collection[UUID], context: KeyContext) -> int:
        """Deletes these keys, and whatever else is marked as for this context; durable when it returns.

        Dropped from memory before and after: what was read in between is read again.
        """
        self.forget(context)
        async with connected(self._pool) as connection:
            done = await connection.execute(
                "DELETE FROM data_keys WHERE id = ANY($1::uuid[]) "
                "OR (purpose = $2 AND tenant = $3 AND name = $4 AND version = $5)",
                *(list(identifiers), context.purpose, context.tenant, context.name, context.version),
            )
        self.forget(context)
        return int(done.removeprefix("DELETE "))

    async def delete_one(self, identifier: UUID, context: KeyContext) -> int:
        """Deletes this key and no other of its context; durable when it returns."""
        self.forget(context)
        async with connected(self._pool) as connection:
            done = await connection.execute("DELETE FROM data_keys WHERE id = $1", identifier)
        self.forget(context)
        return int(done.removeprefix("DELETE "))

    async def take_back(self, identifier: UUID) -> None:
        """Deletes a key that was made and never opened. Those of its context in memory are others, and stay."""
        async with connected(self._pool) as connection:
            await connection.execute("DELETE FROM data_keys WHERE id = $1", identifier)

    def forget(self, context: KeyContext) -> None:
        """Drops the keys of a context from memory."""
        self.ring.drop(lambda _, held: held == context)

    async def log_seed(self) -> DataKey:
        """The 32-byte seed of the log's Ed25519 key; made at the first start, one for all replicas."""
        for _ in range(2):
            async with connected(self._pool) as connection:
                wrapped = await connection.fetchval("SELECT wrapped FROM data_keys WHERE purpose = 'log-signing'")
            if wrapped is not None:
                return await self._kek.unwrap(WrappedKey.parse(wrapped), LOG_CONTEXT)
            _, fresh = await self._kek.generate_data_key(LOG_CONTEXT)
            await self._insert(uuid4(), LOG_CONTEXT, fresh)
        raise StoredDataUnreadable("the log's key was written and is not there")

    async def ping(self) -> None:
        """Returns if the database answers."""
        async with connected(self._pool) as connection:
            await connection.fetchval("SELECT 1")

    async def count(self) -> int:
        """See `rewrapping.WrapStore`."""
        async with connected(self._pool) as connection:
            return int(await connection.fetchval("SELECT count(*) FROM data_keys"))

    async def pages(self) -> AsyncIterator[Sequence[StoredWrap]]:
        """See `rewrapping.WrapStore`. By identifier; a key that appears meanwhile is under the current version."""
        last = UUID(int=0)
        while True:
            async with connected(self._pool) as connection:
                rows = await connection.fetch(
                    "SELECT id, purpose, tenant, name, version, wrapped FROM data_keys WHERE id > $1 "
                    "ORDER BY id LIMIT $2",
                    *(last, _PAGE),
                )
            if not rows:
                return
            last = rows[-1]["id"]
            yield [
                StoredWrap(
                    identifier=str(row["id"]),
                    context=KeyContext(
                        purpose=row["purpose"], tenant=row["tenant"], name=row["name"], version=max(row["version"], 0)
                    ),
                    stored=row["wrapped"],
                )
                for row in rows
            ]

    async def replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        """See `rewrapping.WrapStore`. One statement: a row deleted meanwhile does not come back."""
        async with connected(self._pool) as connection:
            done = await connection.execute(
                "UPDATE data_keys SET wrapped = changed.fresh "
                "FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS changed (id, stored, fresh) "
                "WHERE data_keys.id = changed.id AND data_keys.wrapped = changed.stored",
                [UUID(wrap.identifier) for wrap, _ in changes],
                [wrap.stored for wrap, _ in changes],
                [fresh for _, fresh in changes],
            )
        return int(done.removeprefix("UPDATE "))

    async def _insert(self, identifier: UUID, context: KeyContext, wrapped: WrappedKey) -> None:
        async with connected(self._pool) as connection:
            await connection.execute(
                "INSERT INTO data_keys (id, purpose, tenant, name, version, wrapped, created_at) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7) "
                "ON CONFLICT (purpose) WHERE purpose = 'log-signing' DO NOTHING",
                *(identifier, context.purpose, context.tenant, context.name, context.version),
                *(wrapped.to_bytes(), self._clock.now()),
            )
