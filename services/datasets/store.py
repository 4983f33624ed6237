"""Uploads, batches and rows in PostgreSQL; all SQL about them is here.

Every row that decides something carries a MAC over its table, key and columns,
checked on every read. One transaction moves rows, batch header and offset;
another moves promotion and log entry.

Not seen here: an old row of `uploads` put back with its own old MAC, or a row
deleted. The log has every promotion and quarantine, and shows both.

If this fails: a version could become readable without its checks, or a chunk be
acknowledged and lost. A puller still recomputes root and signature.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from casemate.errors import (
    AlreadyExists,
    Conflict,
    FieldViolation,
    InvalidRequest,
    NotFound,
    Reason,
    StoredDataUnreadable,
)
from casemate.sealing.rows import SealedBatch
from services.datasets.database import connected, transaction
from services.datasets.shreddings import Shredding, ShreddingTable
from services.datasets.upload import StoredBatch, Upload, UploadState, require_complete, require_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey, Canonical
    from casemate.signing.statements import DatasetManifest, VerifiedManifest
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms
    from services.datasets.log_store import LogStore
    from services.datasets.upload import PlannedChunk

_NAMES = tuple(field.name for field in fields(Upload))
_COLUMNS = ", ".join(_NAMES)
# Built from the names of our own dataclass alone; every value is a parameter.
_SELECT = f"SELECT {_COLUMNS}, mac FROM uploads"  # noqa: S608
_INSERT = (
    f"INSERT INTO uploads ({_COLUMNS}, mac) "  # noqa: S608
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(_NAMES) + 2))}) "
    "ON CONFLICT (tenant, dataset, version, upload_id) DO NOTHING"
)
_UPDATE = (
    "UPDATE uploads SET state = $2, next_offset = $3, next_batch = $4, next_ordinal = $5, promoted_at = $6, "
    "log_index = $7, mac = $8 WHERE id = $1"
)
_LATEST = (
    _SELECT + " WHERE tenant = $1 AND dataset = $2 AND state IN ('promoted', 'shredded') ORDER BY version DESC LIMIT 1"
)
_ATTEMPTS = _SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 ORDER BY id FOR UPDATE"
# Serializes promotions of one dataset; released with the transaction.
_LOCK_DATASET = "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))"


class VersionStore:
    """Dataset versions and the attempts to push them."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms, clock: Clock) -> None:
        self._pool = pool
        self._authority = authority
        self._log = log
        self._shreddings = ShreddingTable(authority=authority, alarms=alarms)
        self._alarms = alarms
        self._clock = clock

    async def find(self, tenant: str, dataset: str, version: int, upload_id: str) -> Upload | None:
        """One attempt, whatever its state."""
        query = _SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 AND upload_id = $4"
        return await self._fetch(query, tenant, dataset, version, upload_id)

    async def version(self, tenant: str, dataset: str, version: int) -> Upload | None:
        """The promoted attempt of a version, shredded or not."""
        query = _SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 AND state IN ('promoted', 'shredded')"
        return await self._fetch(query, tenant, dataset, version)

    async def latest(self, tenant: str, dataset: str) -> Upload | None:
        """The promoted attempt of the highest version, shredded or not."""
        return await self._fetch(_LATEST, tenant, dataset)

    async def with_roots(self, tenant: str, roots: Sequence[bytes]) -> list[Upload]:
        """The promoted attempts with one of these roots. Rows that do not verify alarm and are left out."""
        query = _SELECT + " WHERE tenant = $1 AND root = ANY($2::bytea[]) AND state = 'promoted'"
        async with connected(self._pool) as connection:
            records = await connection.fetch(query, tenant, list(roots))
        return self._readable(records)

    async def begin(self, upload: Upload, manifest: VerifiedManifest) -> Upload:
        """Stores a new attempt with its envelope, or gives the one that was there first.

        Raises:
            AlreadyExists, InvalidRequest: the version is not the next one of its dataset.
        """
        async with transaction(self._pool) as connection:
            await self._require_next(connection, manifest.manifest)
            values = _values(upload)
            if await connection.execute(_INSERT, *values.values(), self._mac(upload)) == "INSERT 0 1":
                await connection.execute(
                    "INSERT INTO manifests (upload, envelope) VALUES ($1, $2)", upload.id, manifest.envelope
                )
                await self._log.append(connection, "manifest", _entry_body(upload), by="datasets")
                return upload
        found = await self.find(upload.tenant, upload.dataset, upload.version, upload.upload_id)
        if found is None:
            raise Conflict("an upload appeared and went away")
        return found

    async def append(self, upload_id: UUID, chunk: PlannedChunk, batch: SealedBatch) -> Upload:
        """Stores a sealed chunk if its offset is still the next one, and gives the upload as it then is.

        Rows, header and offset move in one transaction; when this returns they are
        durable. When another writer was first, nothing is stored.
        """
        async with transaction(self._pool) as connection:
            upload = await self._locked(connection, upload_id)
            if upload.state is not UploadState.RECEIVING or upload.next_offset != chunk.offset:
                return upload
            await connection.execute(
                "INSERT INTO batches (upload, number, first_ordinal, row_count, leaf_hash, salt, commitment) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7)",
                *(upload_id, chunk.number, chunk.first_ordinal, len(batch.rows)),
                *(chunk.digest.leaf_hash, batch.salt, batch.commitment),
            )
            await connection.copy_records_to_table(
                "sealed_rows",
                columns=("upload", "batch", "ordinal", "sealed"),
                records=[
                    (upload_id, chunk.number, ordinal, row)
                    for ordinal, row in enumerate(batch.rows, chunk.first_ordinal)
                ],
            )
            upload = upload.after(chunk)
            await self._update(connection, upload)
            return upload

    async def quarantine(self, upload_id: UUID, *, why: str) -> Upload:
        """Bars an unfinished upload from promotion for ever, and logs it. A promoted version does not change."""
        async with transaction(self._pool) as connection:
            upload = await self._locked(connection, upload_id)
            if upload.state is UploadState.RECEIVING:
                upload = upload.quarantined()
                await self._update(connection, upload)
                await self._log.append(connection, "quarantine", _entry_body(upload) | {"why": why}, by="datasets")
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
            upload = await self._locked(connection, upload_id)
            if upload.state is UploadState.PROMOTED:
                return upload
            if upload.state is UploadState.SHREDDED:
                raise AlreadyExists(f"version {upload.version} of {upload.dataset} was shredded")
            if upload.state is UploadState.QUARANTINED or upload.manifest_sha256 != manifest.payload_sha256:
                raise Conflict(f"upload {upload_id} may not be promoted", reason=Reason.EQUIVOCATION)
            require_complete(upload)
            await connection.execute(_LOCK_DATASET, upload.tenant, upload.dataset)
            await self._require_next(connection, manifest.manifest)
            with self._alarms.on_integrity():
                require_stored(manifest.manifest, *await _stored(connection, upload_id))
            now = self._clock.now()
            judge(now)
            index = await self._log.append(connection, "promotion", _entry_body(upload), by="datasets")
            upload = upload.promoted(at=now, log_index=index)
            await self._update(connection, upload)
            return upload

    async def shred(self, *, tenant: str, dataset: str, version: int) -> tuple[Upload, Shredding]:
        """Bars a promoted version from being read, and logs it, in one transaction. Repeated, it changes nothing.

        Other attempts to push the version are quarantined: they hold the same rows.

        Raises:
            NotFound: no such version is promoted.
        """
        async with transaction(self._pool) as connection:
            attempts = self._readable(await connection.fetch(_ATTEMPTS, tenant, dataset, version))
            for upload in attempts:
                if upload.state is UploadState.SHREDDED:
                    return upload, await self._shreddings.get(connection, upload.id)
            found = [upload for upload in attempts if upload.state is UploadState.PROMOTED]
            if not found:
                raise NotFound(f"no version {version} of {tenant}/{dataset}")
            for upload in attempts:
                if upload.state is UploadState.RECEIVING:
                    await self._update(connection, upload.quarantined())
            upload = found[0].shredded()
            index = await self._log.append(connection, "shred", _entry_body(upload), by="datasets")
            shredding = Shredding(upload=upload.id, log_index=index, shredded_at=self._clock.now())
            await self._update(connection, upload)
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
                _SELECT + " WHERE id = ANY($1::uuid[]) AND state = 'shredded'", [found.upload for found in news]
            )
        uploads = {upload.id: upload for upload in self._readable(records)}
        return [(uploads[found.upload], found) for found in news if found.upload in uploads]

    async def shredded(self) -> list[Upload]:
        """Every version that was shredded. Rows that do not verify alarm and are left out."""
        async with connected(self._pool) as connection:
            return self._readable(await connection.fetch(_SELECT + " WHERE state = 'shredded'"))

    async def envelope(self, upload: Upload) -> bytes:
        """The signed envelope of an attempt."""
        async with connected(self._pool) as connection:
            envelope = await connection.fetchval("SELECT envelope FROM manifests WHERE upload = $1", upload.id)
        if envelope is None:
            raise StoredDataUnreadable(f"upload {upload.id} has no manifest")
        return bytes(envelope)

    async def batch(self, upload: Upload, number: int) -> SealedBatch:
        """One sealed batch. Memory: one chunk.

        Raises:
            StoredDataUnreadable: its header is gone.
        """
        async with connected(self._pool) as connection:
            header = await connection.fetchrow(
                "SELECT first_ordinal, salt, commitment FROM batches WHERE upload = $1 AND number = $2",
                *(upload.id, number),
            )
            rows = await connection.fetch(
                "SELECT sealed FROM sealed_rows WHERE upload = $1 AND batch = $2 ORDER BY ordinal",
                *(upload.id, number),
            )
        if header is None:
            raise StoredDataUnreadable(f"upload {upload.id} has no batch {number}")
        return SealedBatch(
            salt=header["salt"],
            commitment=header["commitment"],
            first_ordinal=header["first_ordinal"],
            rows=tuple(row["sealed"] for row in rows),
        )

    async def ping(self) -> None:
        """Returns if the database answers."""
        async with connected(self._pool) as connection:
            await connection.fetchval("SELECT 1")

    async def _fetch(self, query: str, *values: object) -> Upload | None:
        async with connected(self._pool) as connection:
            record = await connection.fetchrow(query, *values)
        return None if record is None else self._verified(record)

    async def _locked(self, connection: Connection, upload_id: UUID) -> Upload:
        record = await connection.fetchrow(_SELECT + " WHERE id = $1 FOR UPDATE", upload_id)
        if record is None:
            raise StoredDataUnreadable(f"upload {upload_id} is gone")
        return self._verified(record)

    async def _require_next(self, connection: Connection, manifest: DatasetManifest) -> None:
        record = await connection.fetchrow(_LATEST, manifest.tenant, manifest.dataset)
        require_next(manifest, None if record is None else self._verified(record))

    async def _update(self, connection: Connection, upload: Upload) -> None:
        await connection.execute(
            _UPDATE,
            *(upload.id, upload.state.value, upload.next_offset, upload.next_batch, upload.next_ordinal),
            *(upload.promoted_at, upload.log_index, self._mac(upload)),
        )

    def _readable(self, records: Sequence[asyncpg.Record]) -> list[Upload]:
        found = []
        for record in records:
            try:
                found.append(self._verified(record))
            except StoredDataUnreadable:  # refused by being left out; the alarm has sounded
                continue
        return found

    def _mac(self, upload: Upload) -> bytes:
        return self._authority.mac("uploads", str(upload.id), _authority_columns(upload))

    def _verified(self, record: asyncpg.Record) -> Upload:
        values = {name: record[name] for name in _NAMES}
        upload = Upload(**(values | {"state": UploadState(values["state"])}))
        with self._alarms.on_authority():
            self._authority.verify("uploads", str(upload.id), _authority_columns(upload), record["mac"])
        return upload


def require_next(manifest: DatasetManifest, latest: Upload | None) -> None:
    """Returns if the manifest continues the chain of its dataset.

    Raises:
        AlreadyExists: the version, or a later one, is there.
        InvalidRequest: MANIFEST_INVALID, a version is left out or the previous root is not that of the latest.
    """
    number, root = (0, None) if latest is None else (latest.version, latest.root)
    if manifest.version <= number:
        raise AlreadyExists(f"version {manifest.version} of {manifest.dataset}; the latest is {number}")
    wrong = "version" if manifest.version != number + 1 else "previous_root" if manifest.previous_root != root else None
    if wrong:
        raise InvalidRequest(
            f"{wrong} does not continue version {number}",
            reason=Reason.MANIFEST_INVALID,
            violations=(FieldViolation(f"manifest.{wrong}", "does not continue the latest version"),),
        )


async def _stored(connection: Connection, upload_id: UUID) -> tuple[list[StoredBatch], int]:
    records = await connection.fetch(
        "SELECT number, first_ordinal, row_count, leaf_hash FROM batches WHERE upload = $1 ORDER BY number", upload_id
    )
    rows = await connection.fetchval("SELECT count(*) FROM sealed_rows WHERE upload = $1", upload_id)
    return [StoredBatch(*record.values()) for record in records], rows


def _values(upload: Upload) -> dict[str, object]:
    return asdict(upload) | {"state": upload.state.value}


def _authority_columns(upload: Upload) -> dict[str, Canonical]:
    columns: dict[str, Canonical] = _values(upload) | {"data_key": str(upload.data_key)}  # type: ignore[assignment]  # asdict forgets the types of the fields
    del columns["id"]
    return columns


def _entry_body(upload: Upload) -> dict[str, object]:
    """Names and digests, never rows."""
    return {
        "dataset": upload.dataset,
        "manifest_sha256": upload.manifest_sha256.hex(),
        "root": upload.root.hex(),
        "rows": upload.row_count,
        "signer": upload.signer_key_id,
        "tenant": upload.tenant,
        "version": upload.version,
    }
