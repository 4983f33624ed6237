"""Wrapped data keys in their own database; all SQL about them is here.

What a key is for is never read from its row: the caller says it, from a row that
carries a MAC, and the KEK binds it. A key moved to another row does not unwrap.

If this fails: data keys leak to who reads this process's memory, never to who
reads the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from casemate.errors import StoredDataUnreadable
from casemate.sealing.keys import KeyContext, WrappedKey
from services.datasets.database import connected

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.sealing.keys import DataKey
    from casemate.storage.pool import Pool

LOG_CONTEXT = KeyContext(purpose="log-signing", tenant="", name="log", version=1)
"""The seed of the log's signing key is kept like a data key."""


def rows_context(tenant: str, dataset: str, version: int) -> KeyContext:
    """What a dataset version's data key is bound to."""
    return KeyContext(purpose="dataset-rows", tenant=tenant, name=dataset, version=version)


class DataKeyStore:
    """Makes, keeps and unwraps data keys."""

    def __init__(self, *, pool: Pool, kek: KeyEncryptionKey, clock: Clock) -> None:
        self._pool = pool
        self._kek = kek
        self._clock = clock

    async def create(self, context: KeyContext) -> tuple[UUID, DataKey]:
        """A new data key, durable in its wrapped form before it is given out."""
        key, wrapped = await self._kek.generate_data_key(context)
        identifier = uuid4()
        await self._insert(identifier, context, wrapped)
        return identifier, key

    async def open(self, identifier: UUID, context: KeyContext) -> DataKey:
        """The data key of a row, unwrapped for this context.

        Raises:
            StoredDataUnreadable: it is gone, or was not wrapped for this context.
        """
        async with connected(self._pool) as connection:
            wrapped = await connection.fetchval("SELECT wrapped FROM data_keys WHERE id = $1", identifier)
        if wrapped is None:
            raise StoredDataUnreadable(f"data key {identifier} is gone")
        return await self._kek.unwrap(WrappedKey.parse(wrapped), context)

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

    async def _insert(self, identifier: UUID, context: KeyContext, wrapped: WrappedKey) -> None:
        async with connected(self._pool) as connection:
            await connection.execute(
                "INSERT INTO data_keys (id, purpose, tenant, name, version, wrapped, created_at) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7) "
                "ON CONFLICT (purpose) WHERE purpose = 'log-signing' DO NOTHING",
                *(identifier, context.purpose, context.tenant, context.name, context.version),
                *(wrapped.to_bytes(), self._clock.now()),
            )
