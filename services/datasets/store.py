"""Uploads, batches and rows in PostgreSQL; all SQL about them is here.

Every row that decides something carries a MAC (see `upload_rows`). One transaction moves rows, batch header and offset;
another moves promotion and log entry.

Not seen here: an old row of `uploads` put back with its own old MAC, or a row
deleted. The log has every promotion and quarantine, and shows both.

If this fails: a version could become readable without its checks, or a chunk be
acknowledged and lost. A puller still recomputes root and signature.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from casemate.errors import (
    AlreadyExists,
    Conflict,
    FieldViolation,
    InvalidRequest,
    Reason,
    StoredDataUnreadable,
)
from casemate.sealing.rows import SealedBatch
from casemate.signing.dataset_manifest import NEXT_VERSION, PREVIOUS_ROOT
from services.datasets.copying import copy_rows, insert_headers
from services.datasets.database import connected, transaction
from services.datasets.row_ranges import count_rows
from services.datasets.upload import (
    StoredBatch,
    Upload,
    UploadState,
    require_complete,
    require_not_quarantined,
    require_stored,
)
from services.datasets.upload_rows import LATEST, NEWEST_OF_EACH, OLDER, SELECT, UploadRows, entry_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.signing.statements import DatasetManifest, VerifiedManifest
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms
    from services.datasets.copying import SealedChunk
    from services.datasets.log_store import LogStore
    from services.datasets.upload_limits import UploadLimits


# Serializes promotions of one dataset; released with the transaction.
_LOCK_DATASET: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))"


class _Overtaken(Exception):
    """What was copied is not what is wanted: undoes the transaction, and goes no further."""


class VersionStore:
    """Dataset versions and the attempts to push them."""

    def __init__(
        self,
        *,
        pool: Pool,
        authority: AuthorityKey,
        log: LogStore,
        alarms: Alarms,
        clock: Clock,
        limits: UploadLimits,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._rows = UploadRows(authority=authority, alarms=alarms)
        self._log = log
        self._alarms = alarms
        self._clock = clock

    async def find(self, tenant: str, dataset: str, version: int, upload_id: str) -> Upload | None:
        """One attempt, whatever its state."""
        query = SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 AND upload_id = $4"
        return await self._fetch(query, tenant, dataset, version, upload_id)

    async def current(self, upload_id: UUID) -> Upload:
        """An attempt as it is stored now.

        Raises:
            StoredDataUnreadable: it is gone.
        """
        found = await self._fetch(SELECT + " WHERE id = $1", upload_id)
        if found is None:
            raise StoredDataUnreadable(f"upload {upload_id} is gone")
        return found

    async def version(self, tenant: str, dataset: str, version: int) -> Upload | None:
        """The promoted attempt of a version, shredded or not."""
        query = SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 AND state IN ('promoted', 'shredded')"
        return await self._fetch(query, tenant, dataset, version)

    async def latest(self, tenant: str, dataset: str) -> Upload | None:
        """The promoted attempt of the highest version, shredded or not."""
        return await self._fetch(LATEST, tenant, dataset)

    async def with_roots(self, tenant: str, roots: Sequence[bytes]) -> list[Upload]:
        """The versions with one of these roots, shredded or not. Rows that do not verify alarm and are left out."""
        query = SELECT + " WHERE tenant = $1 AND root = ANY($2::bytea[]) AND state IN ('promoted', 'shredded')"
        async with connected(self._pool) as connection:
            records = await connection.fetch(query, tenant, list(roots))
        return self._rows.readable(records)

    async def newest(self, tenant: str, *, after: str, limit: int) -> tuple[list[Upload], str | None]:
        """The highest version, shredded or not, of each of the next datasets by name; costs two look-ups a dataset.

        Rows that do not verify alarm and are left out. Also the name to go on after, or none behind the last.
        """
        async with connected(self._pool) as connection:
            records = await connection.fetch(NEWEST_OF_EACH, tenant, after, limit)
        return self._rows.readable(records), records[-1]["dataset"] if len(records) == limit else None

    async def older(self, tenant: str, dataset: str, *, below: int, limit: int) -> list[Upload]:
        """The next lower versions, highest first. Rows that do not verify alarm and are left out."""
        async with connected(self._pool) as connection:
            return self._rows.readable(await connection.fetch(OLDER, tenant, dataset, below, limit))

    async def require_room(self, tenant: str, signer_key_id: str) -> None:
        """Returns if one more upload of a supplier could begin now: before anything is made for it.

        Raises:
            Exhausted: too many are unfinished.
        """
        async with connected(self._pool) as connection:
            await self._limits.require_room(connection, tenant=tenant, signer_key_id=signer_key_id, more=1)

    async def begin(self, upload: Upload, manifest: VerifiedManifest) -> Upload:
        """Stores a new attempt with its envelope, or gives the one that was there first.

        Raises:
            AlreadyExists, InvalidRequest: the version is not the next one of its dataset.
            Exhausted: too many are unfinished.
        """
        async with transaction(self._pool) as connection:
            await self._require_next(connection, manifest.manifest)
            if await self._rows.insert(connection, upload):
                await connection.execute(
                    "INSERT INTO manifests (upload, envelope) VALUES ($1, $2)", upload.id, manifest.envelope
                )
                await self._log.append(connection, "manifest", entry_body(upload), by="datasets")
                # Behind the append, for which others wait: of many that begin at once, each sees those before it.
                await self._limits.require_room(connection, tenant=upload.tenant, signer_key_id=upload.signer_key_id)
                return upload
        found = await self.find(upload.tenant, upload.dataset, upload.version, upload.upload_id)
        if found is None:
            raise Conflict("an upload appeared and went away")
        return found

    async def append(self, upload_id: UUID, chunks: Sequence[SealedChunk]) -> Upload:
        """Stores those of the sealed chunks whose offset is the next one, and gives the upload as it then is.

        Rows, headers and offset move in one transaction; when this returns they are
        durable. What another writer of the same bytes has stored is not stored again.
        """
        async with transaction(self._pool) as connection:
            stored = upload = await self._rows.locked(connection, upload_id)
            if upload.state is not UploadState.RECEIVING:
                return upload
            wanted: list[SealedChunk] = []
            for sealed in chunks:
                if sealed.chunk.offset == upload.next_offset:
                    upload = upload.after(sealed.chunk)
                    wanted.append(sealed)
            if upload is not stored:
                await copy_rows(connection, wanted)
                await insert_headers(connection, upload_id, wanted)
                await self._rows.update(connection, upload)
            return upload

    async def append_behind(
        self, upload_id: UUID, chunks: Sequence[SealedChunk], *, turn: Callable[[], Awaitable[bool]]
    ) -> Upload | None:
        """As `append`, begun while the chunks before these are still being stored; None where it came to nothing.

        The rows are copied at once, and the upload is locked only when it is their turn: so the database copies
        while it waits for the disk. Unless these chunks are then what the upload wants next, nothing of them is stored.

        Args:
            upload_id: the attempt.
            chunks: sealed, one behind the other.
            turn: waits for the chunks before these; False if that took too long or they were not stored.
        """
        with suppress(Conflict, _Overtaken):
            async with transaction(self._pool) as connection:
                await copy_rows(connection, chunks)
                if not await turn():
                    raise _Overtaken
                # Not waited for, as whoever holds it may wait for the rows above: somebody else writes, and is first.
                upload = await self._rows.locked(connection, upload_id, at_once=True)
                if upload.state is not UploadState.RECEIVING or upload.next_offset != chunks[0].chunk.offset:
                    raise _Overtaken
                for sealed in chunks:
                    upload = upload.after(sealed.chunk)
                await insert_headers(connection, upload_id, chunks)
                await self._rows.update(connection, upload)
            return upload
        return None

    @property
    def at_ease(self) -> bool:
        """Whether half of the connections are free: only then may one upload use two."""
        pool = self._pool
        return 2 * (pool.get_size() - pool.get_idle_size()) < pool.get_max_size()

    async def quarantine(self, upload_id: UUID, *, why: str) -> Upload:
        """Bars an unfinished upload from promotion for ever, and logs it. A promoted version does not change."""
        async with transaction(self._pool) as connection:
            upload = await self._rows.locked(connection, upload_id)
            if upload.state is UploadState.RECEIVING:
                upload = upload.quarantined()
                await self._rows.update(connection, upload)
                await self._log.append(connection, "quarantine", entry_body(upload) | {"why": why}, by="datasets")
            return upload

    async def promote(
        self, upload_id: UUID, manifest: VerifiedManifest, *, judge: Callable[[datetime], None]
    ) -> Upload:
        """Validates what is stored, judges the signer once more, and makes the version readable.

        All in the transaction that also appends to the log: either both are there or
        neither. A promoted upload is given back as it is.

        Args:
            upload_id: the attempt.
            manifest: what was signed.
            judge: raises if the signer's signature does not count now.

        Raises:
            OutOfRange: chunks are missing.
            StoredDataUnreadable: what is stored is not what was signed.
            PermissionDenied: by `judge`.
            AlreadyExists, InvalidRequest: another upload was promoted meanwhile.
        """
        async with transaction(self._pool) as connection:
            upload = await self._rows.locked(connection, upload_id)
            if upload.state is UploadState.PROMOTED:
                return upload
            if upload.state is UploadState.SHREDDED:
                raise AlreadyExists(f"version {upload.version} of {upload.dataset} was shredded")
            require_not_quarantined(upload)
            if upload.manifest_sha256 != manifest.payload_sha256:
                raise Conflict(f"upload {upload_id} may not be promoted", reason=Reason.EQUIVOCATION)
            require_complete(upload)
            await connection.execute(_LOCK_DATASET, upload.tenant, upload.dataset)
            await self._require_next(connection, manifest.manifest)
            with self._alarms.on_integrity():
                # Twenty thousand chunks take a tenth of a second.
                await asyncio.to_thread(require_stored, manifest.manifest, *await _stored(connection, upload))
            now = self._clock.now()
            judge(now)
            index = await self._log.append(connection, "promotion", entry_body(upload), by="datasets")
            upload = upload.promoted(at=now, log_index=index)
            await self._rows.update(connection, upload)
            return upload

    async def envelope(self, upload: Upload) -> bytes:
        """The signed envelope of an attempt."""
        async with connected(self._pool) as connection:
            envelope = await connection.fetchval("SELECT envelope FROM manifests WHERE upload = $1", upload.id)
        if envelope is None:
            raise StoredDataUnreadable(f"upload {upload.id} has no manifest")
        return bytes(envelope)

    async def batch(self, upload: Upload, number: int) -> tuple[SealedBatch, list[bytes]]:
        """The header of one sealed batch, and apart from it its rows, which nobody else holds. Memory: one chunk.

        Raises:
            StoredDataUnreadable: its header is gone.
        """
        async with connected(self._pool) as connection:
            header = await connection.fetchrow(
                "SELECT first_ordinal, salt, commitment FROM batches WHERE upload = $1 AND number = $2",
                *(upload.id, number),
            )
            records = await connection.fetch(
                "SELECT sealed FROM sealed_rows WHERE upload = $1 AND batch = $2 ORDER BY ordinal",
                *(upload.id, number),
            )
        if header is None or None in header.values():
            raise StoredDataUnreadable(f"upload {upload.id} has no batch {number}")
        head = SealedBatch(
            salt=header["salt"], commitment=header["commitment"], first_ordinal=header["first_ordinal"], rows=()
        )
        return head, [record[0] or b"" for record in records]

    async def ping(self) -> None:
        """Returns if the database answers."""
        async with connected(self._pool) as connection:
            await connection.fetchval("SELECT 1")

    async def _fetch(self, query: str, *values: object) -> Upload | None:
        async with connected(self._pool) as connection:
            return await self._rows.one(connection, query, *values)

    async def _require_next(self, connection: Connection, manifest: DatasetManifest) -> None:
        require_next(manifest, await self._rows.one(connection, LATEST, manifest.tenant, manifest.dataset))


def require_next(manifest: DatasetManifest, latest: Upload | None) -> None:
    """Returns if the manifest continues the chain of its dataset.

    Raises:
        AlreadyExists: the version, or a later one, is there.
        InvalidRequest: MANIFEST_INVALID, a version is left out or the previous root is not that of the latest.
    """
    number, root = (0, None) if latest is None else (latest.version, latest.root)
    if manifest.version <= number:
        # For who may push and not read, and where the latest is quarantined: nothing else says what comes next.
        raise AlreadyExists(
            f"version {manifest.version} of {manifest.dataset}; the latest is {number}",
            violations=(
                FieldViolation(NEXT_VERSION, str(number + 1)),
                FieldViolation(PREVIOUS_ROOT, "" if root is None else root.hex()),
            ),
        )
    wrong = "version" if manifest.version != number + 1 else "previous_root" if manifest.previous_root != root else None
    if wrong:
        raise InvalidRequest(
            f"{wrong} does not continue version {number}",
            reason=Reason.MANIFEST_INVALID,
            violations=(FieldViolation(f"manifest.{wrong}", "does not continue the latest version"),),
        )


async def _stored(connection: Connection, upload: Upload) -> tuple[list[StoredBatch], int]:
    records = await connection.fetch(
        "SELECT number, first_ordinal, row_count, leaf_hash FROM batches WHERE upload = $1 ORDER BY number", upload.id
    )
    rows = await count_rows(connection, upload.id, batches=upload.chunk_count)
    return [StoredBatch(*record.values()) for record in records], rows
