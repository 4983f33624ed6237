"""Shredding in PostgreSQL: the state, the log entry and the intent in one transaction.

If this fails: a version stays readable that was shredded, or is shredded without an
entry in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate.errors import NotFound
from services.datasets.database import connected, transaction
from services.datasets.shreddings import Shredding, ShreddingTable
from services.datasets.upload import Upload, UploadState
from services.datasets.upload_rows import SELECT, UploadRows, entry_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms
    from services.datasets.log_store import LogStore

Judge: TypeAlias = "Callable[[Connection], Awaitable[None]]"
"""Raises, in the transaction that would shred, if the version is to stay."""

_ATTEMPTS: Final = SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 ORDER BY id FOR UPDATE"


@dataclass(frozen=True, slots=True)
class LoggedShred:
    """A shredding that the log has already, as it is carried out again after a restore."""

    index: int
    at: datetime


class ShredStore:
    """What is, and was, shredded."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms, clock: Clock) -> None:
        self._pool = pool
        self._rows = UploadRows(authority=authority, alarms=alarms)
        self._log = log
        self._shreddings = ShreddingTable(authority=authority, alarms=alarms)
        self._clock = clock

    async def shred(
        self,
        *,
        tenant: str,
        dataset: str,
        version: int,
        logged: LoggedShred | None = None,
        judge: Judge | None = None,
    ) -> tuple[Upload, Shredding]:
        """Bars a promoted version from being read, and logs it, in one transaction. Repeated, it changes nothing.

        Other attempts to push the version are quarantined: they hold the same rows.
        What is `logged` already gets no second entry. What was found due some time ago is judged once more
        by `judge`, when nobody else can change the version.

        Raises:
            NotFound: no such version is promoted.
            CasemateError: by `judge`; nothing is changed.
        """
        async with transaction(self._pool) as connection:
            attempts = self._rows.readable(await connection.fetch(_ATTEMPTS, tenant, dataset, version))
            for upload in attempts:
                if upload.state is UploadState.SHREDDED:
                    return upload, await self._shreddings.get(connection, upload.id)
            found = [upload for upload in attempts if upload.state is UploadState.PROMOTED]
            if not found:
                raise NotFound(f"no version {version} of {tenant}/{dataset}")
            if judge is not None:
                await judge(connection)
            for upload in attempts:
                if upload.state is UploadState.RECEIVING:
                    await self._rows.update(connection, upload.quarantined())
            upload = found[0].shredded()
            if logged is None:
                index = await self._log.append(connection, "shred", entry_body(upload), by="datasets")
                logged = LoggedShred(index, self._clock.now())
            shredding = Shredding(upload=upload.id, log_index=logged.index, shredded_at=logged.at)
            await self._rows.update(connection, upload)
            await self._shreddings.insert(connection, shredding)
            return upload, shredding

    async def finish_shredding(self, shredding: Shredding) -> Shredding:
        """Notes that the key is gone; gives what was noted first."""
        async with transaction(self._pool) as connection:
            await self._shreddings.finish(connection, shredding)
            return await self._shreddings.get(connection, shredding.upload)

    async def shredding(self, upload: Upload) -> Shredding:
        """What is known of the shredding of an upload."""
        async with connected(self._pool) as connection:
            return await self._shreddings.get(connection, upload.id)

    async def shredded_after(self, log_index: int) -> list[tuple[Upload, Shredding]]:
        """Versions shredded later in the log, and all whose key may still be there."""
        async with connected(self._pool) as connection:
            news = await self._shreddings.news(connection, after=log_index)
            records = await connection.fetch(
                SELECT + " WHERE id = ANY($1::uuid[]) AND state IN ('shredded', 'discarded')",
                [found.upload for found in news],
            )
        uploads = {upload.id: upload for upload in self._rows.readable(records)}
        return [(uploads[found.upload], found) for found in news if found.upload in uploads]

    async def shredded(self) -> list[Upload]:
        """Every version that was shredded, every attempt that was discarded. What does not verify is left out."""
        async with connected(self._pool) as connection:
            return self._rows.readable(await connection.fetch(SELECT + " WHERE state IN ('shredded', 'discarded')"))
