"""Which refresh families ended: a row of its own for each, and the memory of this process.

A family's own older row is genuine: put back by SQL, it verifies. The row kept here
says that it ended, until nothing of it could be alive. Whoever deletes that one too
meets the memory of every process that saw it, which refuses and sounds the alarm; a
process that starts after that knows nothing of it, but the transparency log does: it
was told of the revocation of the session.

If this fails: a superuser of the database who also holds a refresh token of an ended
family, and a certificate of its SPIFFE ID, uses it up to the family's absolute limit.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from casemate.errors import AlreadyExists, StoredDataUnreadable
from casemate.storage.pool import storage_errors
from services.auth.records import EndedFamily, Family
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool

_TABLE = "ended_family"


async def note_end(tables: AuthorityTables, connection: Connection, family: Family) -> None:
    """Notes that a family ended, as a part of the change that ends it; again is no error."""
    with suppress(AlreadyExists):
        await tables.ended_families.insert(connection, EndedFamily(id=family.id, expires_at=family.expires_at))


class EndedFamilies:
    """What this process has seen of families that ended; lives in one event loop."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables
        self._seen: dict[str, datetime] = {}

    def saw(self, family: Family) -> None:
        """Remembers an end that was committed."""
        self._seen[family.id] = family.expires_at

    def is_seen(self, family_id: str) -> bool:
        """Whether this process saw that the family ended."""
        return family_id in self._seen

    async def look(self, now: datetime) -> None:
        """Learns what ended since the last look, and sounds the alarm for each end that somebody deleted.

        One read of identifiers, and one for each that is new.

        Raises:
            Unavailable: the database does not answer.
        """
        self._seen = {name: expires_at for name, expires_at in self._seen.items() if expires_at > now}
        known = frozenset(self._seen)  # before the read: an end that is seen meanwhile may not be in it
        with storage_errors():
            async with self._pool.acquire() as connection:
                rows = await connection.fetch("SELECT id FROM ended_family WHERE expires_at > $1", now)
                present = {row["id"] for row in rows}
                for name in sorted(present - known):
                    with suppress(StoredDataUnreadable):  # alarmed where it was found
                        ended = await self._tables.ended_families.get(connection, name)
                        if ended is not None:
                            self._seen[name] = ended.expires_at
        for name in sorted(known - present):
            self._tables.sound("the end of a family is gone", table=_TABLE, key=name)
