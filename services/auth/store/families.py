"""Refresh families in the database: read, swapped, ended."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from casemate.errors import StoredDataUnreadable
from casemate.gate.core.records import Revocation, RevocationKind
from casemate.gate.core.revocations import RevocationIndex
from casemate.storage.pool import storage_errors
from services.auth.records import Family
from services.auth.store.changes import Change, begin_change, hold_changes
from services.auth.store.ended_families import EndedFamilies, note_end
from services.auth.store.revoking import TOKENS_ARE_DEAD_AFTER, add_revocation, covering
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool


class FamilyStore:
    """Reads and changes refresh families.

    Args:
        pool: the authority's database.
        tables: reads and writes rows.
        ended: what this process has seen of families that ended; a memory of its own if not given.
    """

    def __init__(self, *, pool: Pool, tables: AuthorityTables, ended: EndedFamilies | None = None) -> None:
        self._pool = pool
        self._tables = tables
        self._ended = ended or EndedFamilies(pool=pool, tables=tables)

    async def add(self, family: Family, *, said_at: datetime | None = None) -> None:
        """Adds a family, unless what it rests on was revoked since that was looked at.

        A revocation either sees this row and ends it, or is seen here: no change commits in between.

        Args:
            family: the new one.
            said_at: when its subject token was issued, if before it.

        Raises:
            AlreadyExists: its identifier is taken.
            Unauthenticated: subject, client or SPIFFE ID are revoked.
        """
        with storage_errors():
            async with self._pool.acquire() as connection, hold_changes(connection):
                await self._refuse_revoked(connection, family, said_at or family.created_at)
                await self._tables.families.insert(connection, family)

    async def _refuse_revoked(self, connection: Connection, family: Family, said_at: datetime) -> None:
        issuer = family.subject.partition(":")[0]
        asked = (
            (RevocationKind.SUBJECT, family.subject),
            (RevocationKind.SUBJECT, f"{issuer}:"),
            (RevocationKind.CLIENT, family.client_id),
            (RevocationKind.SPIFFE_ID, family.spiffe_id),
        )
        found: list[Revocation] = []
        for kind, value in asked:
            found += await self._tables.revocations.matching(connection, kind=kind.value, value=value)
        if found:
            revoked = RevocationIndex.of(found)
            revoked.check_subject(family.subject, said_at, family.created_at)
            revoked.check_client(family.client_id, family.created_at, family.created_at)
            revoked.check_peer(family.spiffe_id, "", family.created_at)

    async def get(self, family_id: str) -> Family | None:
        """The family with this identifier. Two reads.

        Raises:
            StoredDataUnreadable: its row does not verify, or lives although it was ended: put back by SQL.
        """
        with storage_errors():
            async with self._pool.acquire() as connection:
                # Its end first: a family that ends in between would else look as if it had come back.
                seen = self._ended.is_seen(family_id)
                ended = await self._tables.ended_families.get(connection, family_id)
                family = await self._tables.families.get(connection, family_id)
        if family is None:
            self._tables.families.spend(1)
        if (seen or ended is not None) and family is not None and family.ended_at is None:
            self._tables.sound("a family that was ended lives", table="refresh_family", key=family_id)
            raise StoredDataUnreadable(f"family {family_id} was put back")
        return family

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
        if family is not None:
            self._ended.saw(family)


async def end_families(tables: AuthorityTables, change: Change, *, now: datetime, **equal: str) -> int:
    """Ends every family whose columns have these values, as a part of a change; tells how many."""
    living = [
        family
        for family in await tables.families.matching(change.connection, lock=True, as_many_as=0, **equal)
        if family.ended_at is None
    ]
    for family in living:
        await tables.families.replace(change.connection, replace(family, ended_at=now))
        await note_end(tables, change.connection, family)
    return len(living)


async def end_families_of_issuer(tables: AuthorityTables, change: Change, name: str, *, now: datetime) -> int:
    """Ends every family of a subject of an external issuer, as a part of a change; tells how many."""
    rows = await change.connection.fetch(
        "SELECT DISTINCT subject FROM refresh_family WHERE ended_at IS NULL AND starts_with(subject, $1)", f"{name}:"
    )
    return sum([await end_families(tables, change, now=now, subject=row["subject"]) for row in rows])


def session_revocation(session_id: str, now: datetime) -> Revocation:
    """Refuses every access token of a session that is signed up to a minute from now."""
    return Revocation(
        id=f"revocation-{secrets.token_hex(12)}",
        kind=RevocationKind.SESSION,
        value=session_id,
        expires_at=now + TOKENS_ARE_DEAD_AFTER,
    )
