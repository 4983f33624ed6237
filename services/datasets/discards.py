"""Attempts that never became a version, discarded: their data key destroyed, their rows deleted.

The state, the log entry and the intent are one transaction, as for a version that is
shredded; then the key goes, by its own id (another attempt at the version may be the
one that is readable), and the rows last. The number of the version stays free.

If this fails: rows that nobody was meant to keep stay sealed in the database; no rpc
ever gave them out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from casemate.errors import StoredDataUnreadable
from casemate.signing import dsse
from casemate.signing.statements import DATASET_MANIFEST_TYPE, DatasetManifest
from services.datasets.database import connected, transaction
from services.datasets.logged import read_log
from services.datasets.row_ranges import delete_rows
from services.datasets.shreddings import Shredding, ShreddingTable
from services.datasets.upload import Upload, UploadState
from services.datasets.upload_rows import SELECT, UploadRows, entry_body

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Pool
    from services.datasets.alarms import Alarms
    from services.datasets.log_store import LogStore
    from services.datasets.logged import Logged

_UNFINISHED: Final = SELECT + " WHERE state IN ('receiving', 'quarantined') ORDER BY started_at"
_ATTEMPTS: Final = SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 ORDER BY started_at"
_DISCARDABLE: Final = frozenset({UploadState.RECEIVING, UploadState.QUARANTINED})


class DiscardStore:
    """Attempts that were never promoted."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms, clock: Clock) -> None:
        self._pool = pool
        self._rows = UploadRows(authority=authority, alarms=alarms)
        self._alarms = alarms
        self._shreddings = ShreddingTable(authority=authority, alarms=alarms)
        self._log = log
        self._clock = clock

    async def unfinished(self) -> list[Upload]:
        """Every attempt that could still be discarded, oldest first. Rows that do not verify alarm and are left out."""
        async with connected(self._pool) as connection:
            return self._rows.readable(await connection.fetch(_UNFINISHED))

    async def attempts(self, tenant: str, dataset: str, version: int) -> list[Upload]:
        """Every attempt at a version, whatever its state, oldest first."""
        async with connected(self._pool) as connection:
            return self._rows.readable(await connection.fetch(_ATTEMPTS, tenant, dataset, version))

    async def expires_at(self, upload: Upload) -> datetime:
        """When the manifest of an attempt expires: after that, nothing can promote it.

        Raises:
            InvalidRequest: what is stored is no manifest.
        """
        async with connected(self._pool) as connection:
            envelope = await connection.fetchval("SELECT envelope FROM manifests WHERE upload = $1", upload.id)
        # One of many chunks takes long to read.
        return await asyncio.to_thread(_expires_at, bytes(envelope or b""))

    async def logged(self) -> Logged:
        """What the log says of attempts; to be asked before one is destroyed, once for all that are."""
        return await read_log(self._pool, self._log)

    async def discard(self, upload_id: UUID, *, why: str, logged: Logged) -> tuple[Upload, Shredding | None]:
        """Bars an attempt for ever, and logs it; gives nothing of one that was promoted meanwhile. Repeatable.

        Raises:
            StoredDataUnreadable: the log has it promoted, or not at all: its row is an older one, put back.
        """
        async with transaction(self._pool) as connection:
            upload = await self._rows.locked(connection, upload_id)
            if upload.state is UploadState.DISCARDED:
                return upload, await self._shreddings.get(connection, upload.id)
            if upload.state not in _DISCARDABLE:
                return upload, None
            with self._alarms.on_authority():
                if not logged.has_unfinished(upload):
                    raise StoredDataUnreadable(f"upload {upload.id} is {upload.state} here, and not in the log")
            upload = upload.discarded()
            index = await self._log.append(connection, "discard", entry_body(upload) | {"why": why}, by="datasets")
            shredding = Shredding(upload=upload.id, log_index=index, shredded_at=self._clock.now())
            await self._rows.update(connection, upload)
            await self._shreddings.insert(connection, shredding)
            return upload, shredding

    async def delete_rows(self, upload: Upload) -> None:
        """Frees the space of an attempt whose key is gone."""
        await delete_rows(self._pool, upload.id, batches=upload.chunk_count)
        async with connected(self._pool) as connection:
            await connection.execute("DELETE FROM batches WHERE upload = $1", upload.id)


def _expires_at(envelope: bytes) -> datetime:
    return DatasetManifest.parse(dsse.peek_payload(envelope, DATASET_MANIFEST_TYPE)).expires_at
