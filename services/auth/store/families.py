"""Refresh families in the database: read, swapped, ended."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.gate.core.records import Revocation, RevocationKind
from casemate.storage.pool import storage_errors
from services.auth.records import Family
from services.auth.store.changes import Change, begin_change
from services.auth.store.revoking import add_revocation, covering
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Pool

_TOKENS_ARE_DEAD_AFTER: Final = timedelta(minutes=6)
"""One token life, and a minute for one that is being signed at this moment."""


class FamilyStore:
    """Reads and changes refresh families."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables

    async def add(self, family: Family) -> None:
        """Adds a family. One insert.

        Raises:
            AlreadyExists: its identifier is taken.
        """
        with storage_errors():
            async with self._pool.acquire() as connection:
                await self._tables.families.insert(connection, family)

    async def get(self, family_id: str) -> Family | None:
        """The family with this identifier. One read.

        Raises:
            StoredDataUnreadable: its row does not verify.
        """
        with storage_errors():
            async with self._pool.acquire() as connection:
                return await self._tables.families.get(connection, family_id)

    async def swap(self, before: Family, after: Family) -> bool:
        """Writes `after` if the row still is `before`; tells whether it was. One statement."""
        with storage_errors():
            async with self._pool.acquire() as connection:
                return await self._tables.families.swap(connection, before, after)

    async def end(self, family_id: str, *, now: datetime) -> None:
        """Ends a family and its live access tokens; again is no error. Nothing of it works once this returned.

        The row is locked, so a refresh comes before as a whole or not at all.
        """
        with storage_errors():
            async with self._pool.acquire() as connection:
                family = await self._tables.families.get(connection, family_id)
                revocation = session_revocation(family_id, now)
                ended = family is not None and family.ended_at is not None
                # Ended before, and said: nobody else waits for a change that changes nothing.
                if ended and await covering(self._tables, connection, revocation) is not None:
                    return
                async with begin_change(connection) as change:
                    living = await end_families(self._tables, change, now=now, id=family_id)
                    await add_revocation(self._tables, change, revocation, extend=living > 0)


async def end_families(tables: AuthorityTables, change: Change, *, now: datetime, **equal: str) -> int:
    """Ends every family whose columns have these values, as a part of a change; tells how many."""
    living = [
        family
        for family in await tables.families.matching(change.connection, lock=True, **equal)
        if family.ended_at is None
    ]
    for family in living:
        await tables.families.replace(change.connection, replace(family, ended_at=now))
    return len(living)


def session_revocation(session_id: str, now: datetime) -> Revocation:
    """Refuses every access token of a session that is signed up to a minute from now."""
    return Revocation(
        id=f"revocation-{secrets.token_hex(12)}",
        kind=RevocationKind.SESSION,
        value=session_id,
        expires_at=now + _TOKENS_ARE_DEAD_AFTER,
    )
