"""Token keys as wrapped keys, for rewrapping. Implements `rewrapping.WrapStore`.

A key's row carries a MAC over all its columns, so a new wrap is a new row: written over
the very one that was read, or not at all. The trust feed tells nothing of it, since
what verifies tokens does not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from casemate.sealing.rewrapping import StoredWrap
from casemate.storage.pool import storage_errors
from services.auth.key_schedule import SEALED, kept_by
from services.auth.store.changes import begin_change
from services.auth.token_keys import wrap_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from casemate.storage.pool import Pool
    from services.auth.records import TokenKey
    from services.auth.store.tables import AuthorityTables


class TokenKeyWraps:
    """The sealed private halves of token keys, revoked ones too. There are few."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables

    async def count(self) -> int:
        """See `rewrapping.WrapStore`."""
        return len(await self._all())

    async def pages(self) -> AsyncIterator[Sequence[StoredWrap]]:
        """See `rewrapping.WrapStore`. A row that does not verify alarms, and is left as it is."""
        yield [
            StoredWrap(identifier=key.kid, context=wrap_context(key.kid), stored=key.sealed_private_key)
            for key in await self._all()
        ]

    async def replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        """See `rewrapping.WrapStore`."""
        done = 0
        with storage_errors():
            async with self._pool.acquire() as connection, begin_change(connection) as change:
                for wrap, fresh in changes:
                    key = await self._tables.token_keys.get(change.connection, wrap.identifier)
                    if key is None or key.sealed_private_key != wrap.stored:
                        continue
                    await self._tables.token_keys.replace(change.connection, replace(key, sealed_private_key=fresh))
                    done += 1
        return done

    async def _all(self) -> list[TokenKey]:
        with storage_errors():
            async with self._pool.acquire() as connection:
                keys = await self._tables.token_keys.all(connection)
        # What a KMS keeps has no wrap.
        return [key for key in keys if kept_by(key) == SEALED]
