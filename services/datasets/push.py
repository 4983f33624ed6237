"""Takes one version in: manifest, chunks, promotion. Knows no transport.

Memory per upload is the manifest and a few chunks, whatever the size of the
dataset. Hashing, checking, sealing and encoding a chunk leave the event loop.

If this fails: see `upload` and `store`; what reaches a reader is verified again
when it is read, and again by the reader.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from casemate.errors import (
    AlreadyExists,
    Conflict,
    DigestMismatch,
    Exhausted,
    FieldViolation,
    InvalidRequest,
    OutOfRange,
    PermissionDenied,
    Reason,
)
from casemate.sealing.rows import TAG_BYTES, BatchContext, seal_rows
from casemate.signing import merkle
from casemate.signing.statements import verify_dataset_manifest
from services.datasets.copying import SealedChunk, encode_chunk
from services.datasets.key_store import rows_context
from services.datasets.records import record_check, split_records
from services.datasets.store import require_next
from services.datasets.upload import (
    ChunkPlan,
    Upload,
    UploadState,
    Verdict,
    judge_chunk,
    require_not_quarantined,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from concurrent.futures import Executor
    from datetime import datetime
    from uuid import UUID

    from casemate.clock import Clock
    from casemate.sealing.keys import DataKey
    from casemate.signing.statements import DatasetManifest, SignerResolver, VerifiedManifest
    from services.datasets.key_store import DataKeyStore
    from services.datasets.store import VersionStore
    from services.datasets.upload import PlannedChunk


_THREADS: Final = 2
"""Chunks that are hashed, checked and sealed at once. More would wait for one another: Python runs one at a time."""

_PATIENCE_SECONDS: Final = 2.0
"""How long rows that were copied wait for the chunks before theirs. Two streams of one upload may each wait for
the other, which the database cannot see: then the later rows are given up, and copied in their turn."""


class Intake:
    """Opens uploads whose manifests are for `audience`: this service of this deployment, by its full name."""

    def __init__(
        self, *, audience: str, store: VersionStore, keys: DataKeyStore, resolve: SignerResolver, clock: Clock
    ) -> None:
        self._audience = audience
        self._store = store
        self._keys = keys
        self._resolve = resolve
        self._clock = clock
        # Not the loop's own pool: each thread keeps megabytes of a chunk for the next one, and that pool has many.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="intake")

    async def open(self, *, tenant: str, dataset: str, envelope: bytes) -> OpenUpload:
        """Verifies a manifest and begins, or finds again, the upload that it announces.

        Raises:
            SignatureInvalid, InvalidRequest, PermissionDenied: by `verify_dataset_manifest`.
            AlreadyExists, InvalidRequest: the version is not the next one of its dataset,
                or this upload became one that was shredded.
            Conflict: EQUIVOCATION, another manifest came under this upload id, or
                the upload is quarantined.
            Exhausted: too many uploads of this supplier, or of its tenant, are unfinished.
        """
        verified = await asyncio.to_thread(
            verify_dataset_manifest,
            envelope,
            audience=self._audience,
            tenant=tenant,
            dataset=dataset,
            resolve=self._resolve,
            now=self._clock.now(),
        )
        manifest = verified.manifest
        upload = await self._find_or_begin(verified)
        if upload.manifest_sha256 != verified.payload_sha256:
            raise Conflict(f"another manifest under upload id {manifest.upload_id}", reason=Reason.EQUIVOCATION)
        require_not_quarantined(upload)
        if upload.state is UploadState.SHREDDED:
            raise AlreadyExists(f"version {manifest.version} of {dataset} was shredded")
        key_of = partial(self._keys.open, upload.data_key, rows_context(tenant, dataset, manifest.version))
        await key_of()  # before a chunk is sent, so that a key that does not open is known at once
        # In a thread: the checks of four thousand columns take longer to make than others are to wait.
        return await asyncio.to_thread(
            OpenUpload,
            store=self._store,
            resolve=self._resolve,
            clock=self._clock,
            manifest=verified,
            upload=upload,
            key_of=key_of,
            threads=self._threads,
        )

    async def _find_or_begin(self, verified: VerifiedManifest) -> Upload:
        manifest = verified.manifest
        find = partial(self._store.find, manifest.tenant, manifest.dataset, manifest.version, manifest.upload_id)
        upload = await find()
        if upload is not None:
            return upload
        try:
            require_next(manifest, await self._store.latest(manifest.tenant, manifest.dataset))
            await self._store.require_room(manifest.tenant, verified.signer_key_id)
            return await self._begin(verified)
        except AlreadyExists:
            # Another stream of this very upload may have begun it and made it the version, since it was looked for.
            upload = await find()
            if upload is None:
                raise
            return upload

    async def _begin(self, verified: VerifiedManifest) -> Upload:
        manifest = verified.manifest
        # First the key, durable in the other database: rows must never be without one.
        # A crash in between leaves a key without rows, which opens nothing.
        data_key = await self._keys.create(rows_context(manifest.tenant, manifest.dataset, manifest.version))
        upload = Upload(
            id=uuid4(),
            tenant=manifest.tenant,
            dataset=manifest.dataset,
            version=manifest.version,
            upload_id=manifest.upload_id,
            state=UploadState.RECEIVING,
            manifest_sha256=verified.payload_sha256,
            schema_sha256=manifest.schema_sha256,
            root=manifest.root,
            signer_key_id=verified.signer_key_id,
            row_count=manifest.rows,
            byte_count=manifest.bytes,
            chunk_count=len(manifest.chunks),
            data_key=data_key,
            next_offset=0,
            next_batch=0,
            next_ordinal=0,
            started_at=self._clock.now(),
        )
        try:
            begun = await self._store.begin(upload, verified)
        except (AlreadyExists, Exhausted, InvalidRequest):
            await self._keys.take_back(data_key)
            raise
        if begun.data_key != data_key:  # another stream of the same upload was first
            await self._keys.take_back(data_key)
        return begun


class OpenUpload:
    """An upload whose manifest was verified; `Intake.open` makes it."""

    def __init__(
        self,
        *,
        store: VersionStore,
        resolve: SignerResolver,
        clock: Clock,
        manifest: VerifiedManifest,
        upload: Upload,
        key_of: Callable[..., Awaitable[DataKey]],
        threads: Executor,
    ) -> None:
        self._store = store
        self._resolve = resolve
        self._clock = clock
        self._verified = manifest
        self._plan = ChunkPlan(manifest.manifest.chunks)
        self._check = record_check(manifest.manifest.format, manifest.manifest.schema)
        self._largest = max(chunk.bytes for chunk in manifest.manifest.chunks)
        self._upload = upload
        self._begun = upload.next_offset
        self._alone = True
        self._key_of = key_of
        self._threads = threads

    @property
    def id(self) -> UUID:
        """What its rows are stored under."""
        return self._upload.id

    @property
    def next_offset(self) -> int:
        """The offset that is wanted next; all before it is durable."""
        return self._upload.next_offset

    @property
    def largest_chunk(self) -> int:
        """Bytes of the largest chunk that the manifest announces."""
        return self._largest

    async def take(self, *, offset: int, data: bytes | memoryview) -> ArrivedChunk:
        """Hashes a chunk, and if it is the signed one for its offset checks and seals it; stores nothing.

        May be called for a chunk while those before it are being stored.

        Raises:
            OutOfRange: no chunk begins there.
            InvalidRequest: RECORD_INVALID, a record does not fit the schema.
        """
        chunk = self._plan.at(offset)
        key = await self._key_of(use_bytes=len(data)) if offset >= self._upload.next_offset else None
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._take, key, chunk, data)

    async def store(self, arrived: Sequence[ArrivedChunk], *, behind: asyncio.Task[int] | None = None) -> int:
        """Stores chunks in the order they came, and gives the offset wanted next; durable when it returns.

        Args:
            arrived: the chunks.
            behind: stores the chunks before these, and is begun already; these are stored only if those are.

        Raises:
            OutOfRange: chunks before one of them are missing.
            DigestMismatch: the bytes are not those that were signed.
            Conflict: EQUIVOCATION, other bytes are stored there; the upload is now quarantined.
        """
        continued, self._begun = arrived[0].chunk.offset == self._begun, arrived[-1].chunk.end
        if behind is not None:
            sealed = _successive(arrived) if continued and self._alone else []
            if sealed and self._store.at_ease:
                stored = await self._store.append_behind(self.id, sealed, turn=partial(_is_stored, behind))
                if stored is not None:
                    self._upload = stored
                    return stored.next_offset
                self._alone = False  # or the disk is too slow: either way it would come to nothing again
            await asyncio.wait({behind})
            behind.result()
        return await self._store_in_turn(arrived)

    async def _store_in_turn(self, arrived: Sequence[ArrivedChunk]) -> int:
        expected, wanted = self._upload, list[SealedChunk]()
        try:
            for each in arrived:
                verdict = await self._verdict(expected, each)
                if verdict is Verdict.EQUIVOCATION:
                    self._upload = await self._store.quarantine(self._upload.id, why="equivocation")
                    raise Conflict(f"other bytes at offset {each.chunk.offset}", reason=Reason.EQUIVOCATION)
                if verdict is Verdict.APPEND and each.sealed is not None:
                    wanted.append(each.sealed)
                    expected = expected.after(each.chunk)
        finally:
            # What came before a bad one is good, and need not be sent again.
            if wanted:
                self._upload = await self._store.append(self._upload.id, wanted)
        require_not_quarantined(self._upload)
        # What the database said: behind these chunks, or further if another writer of the same bytes was faster.
        return self._upload.next_offset

    async def _verdict(self, expected: Upload, arrived: ArrivedChunk) -> Verdict:
        try:
            return judge_chunk(expected, arrived.chunk, arrived.leaf_hash)
        except (DigestMismatch, OutOfRange):
            # Another stream of this upload may have stored that place since we looked; then these are other bytes.
            stored = await self._store.current(self._upload.id)
            if stored.next_offset <= arrived.chunk.offset:
                raise
            self._upload = stored
            return judge_chunk(stored, arrived.chunk, arrived.leaf_hash)

    def _take(self, key: DataKey | None, chunk: PlannedChunk, data: bytes | memoryview) -> ArrivedChunk:
        leaf_hash = merkle.leaf_hash(data)
        if key is None or leaf_hash != chunk.digest.leaf_hash:
            return ArrivedChunk(chunk, leaf_hash, None)
        rows = self.checked_rows(chunk, data)
        context = batch_context(self._verified.manifest, chunk.number)
        batch = seal_rows(key, context, rows, first_ordinal=chunk.first_ordinal)
        lengths = [len(row) + TAG_BYTES for row in rows]
        return ArrivedChunk(chunk, leaf_hash, encode_chunk(self.id, chunk, batch, lengths))

    def checked_rows(self, chunk: PlannedChunk, data: bytes | memoryview) -> list[bytes] | list[memoryview]:
        """The rows of a chunk, if its counts and its records are as they were signed. Not for the event loop.

        Raises:
            InvalidRequest: RECORD_INVALID or MANIFEST_INVALID.
        """
        rows = split_records(data, field=f"chunks[{chunk.number}]", encoding=self._verified.manifest.format)
        _require_count(len(rows), chunk.digest.rows, f"chunks[{chunk.number}].rows")
        records = self._check.require(rows, first_record=chunk.first_record)
        _require_count(records, chunk.digest.record_count, f"chunks[{chunk.number}].records")
        return rows

    async def finish(self) -> Upload:
        """Validates, judges the signer again, promotes. Repeated, it gives the same version.

        Raises:
            OutOfRange: chunks are missing.
            PermissionDenied: SIGNER_UNTRUSTED, the signer was revoked meanwhile.
            InvalidRequest: MANIFEST_INVALID, the manifest expired meanwhile.
            Conflict: the upload is quarantined.
            AlreadyExists: another upload became this version.
            StoredDataUnreadable: what is stored is not what was signed.
        """
        self._upload = await self._store.promote(self._upload.id, self._verified, judge=self._judge)
        return self._upload

    def _judge(self, now: datetime) -> None:
        """Raises if what was verified at the first message no longer holds."""
        key_id = self._verified.signer_key_id
        signer = self._resolve(key_id)
        if signer is None or signer.tenant != self._upload.tenant or signer.role != "supplier":
            raise PermissionDenied(f"signer {key_id} is gone", reason=Reason.SIGNER_UNTRUSTED)
        signer.judge(now)
        if now >= self._verified.manifest.expires_at:
            raise InvalidRequest(
                "the manifest expired during the upload",
                reason=Reason.MANIFEST_INVALID,
                violations=(FieldViolation("manifest.expires_at", "is past"),),
            )


async def _is_stored(behind: asyncio.Task[int]) -> bool:
    """Whether chunks were stored, as far as that is known soon enough."""
    await asyncio.wait({behind}, timeout=_PATIENCE_SECONDS)
    return behind.done() and not behind.cancelled() and behind.exception() is None


@dataclass(frozen=True, slots=True)
class ArrivedChunk:
    """A chunk that came: what it hashes to, and itself sealed if those are the signed bytes and are not stored yet."""

    chunk: PlannedChunk
    leaf_hash: bytes
    sealed: SealedChunk | None


def _successive(arrived: Sequence[ArrivedChunk]) -> list[SealedChunk]:
    """The sealed chunks, if all are and each continues the one before it; otherwise none."""
    sealed = [each.sealed for each in arrived if each.sealed is not None]
    successive = all(one.chunk.end == other.chunk.offset for one, other in pairwise(arrived))
    return sealed if successive and len(sealed) == len(arrived) else []


def _require_count(found: int, signed: int, field: str) -> None:
    if found != signed:
        raise InvalidRequest(
            f"{field} is {signed} in the manifest, and {found}",
            reason=Reason.MANIFEST_INVALID,
            violations=(FieldViolation(field, "not the number in the chunk"),),
        )


def batch_context(manifest: DatasetManifest, number: int) -> BatchContext:
    """What the rows of a batch are bound to."""
    return BatchContext(
        tenant=manifest.tenant,
        dataset=manifest.dataset,
        version=manifest.version,
        batch=number,
        schema_sha256=manifest.schema_sha256,
    )
