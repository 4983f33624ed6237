"""One upload as a state machine: no network, no database, no clock.

The manifest fixes the place and the digest of every chunk before the first one
arrives, so what a chunk means follows from its offset alone. The store applies
what is decided here, in one transaction each.

If this fails: bytes that nobody signed could be stored. They would still not be
readable as signed: promotion recomputes the root from the stored leaves, and a
puller recomputes it from the rows.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

from casemate.errors import Conflict, DigestMismatch, FieldViolation, OutOfRange, Reason, StoredDataUnreadable
from casemate.signing import merkle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from casemate.signing.statements import ChunkDigest, DatasetManifest


class UploadState(StrEnum):
    """Where an upload stands. Only the promoted are readable; the shredded were, the discarded never will be."""

    RECEIVING = "receiving"
    PROMOTED = "promoted"
    QUARANTINED = "quarantined"
    SHREDDED = "shredded"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One attempt to push one version; the promoted attempt is the version."""

    id: UUID
    tenant: str
    dataset: str
    version: int
    upload_id: str
    state: UploadState
    manifest_sha256: bytes
    schema_sha256: bytes
    root: bytes
    signer_key_id: str
    row_count: int
    byte_count: int
    chunk_count: int
    data_key: UUID
    next_offset: int
    next_batch: int
    next_ordinal: int
    started_at: datetime
    promoted_at: datetime | None = None
    log_index: int | None = None

    def after(self, chunk: PlannedChunk) -> Upload:
        """The upload once this chunk is stored."""
        return replace(
            self,
            next_offset=chunk.end,
            next_batch=chunk.number + 1,
            next_ordinal=chunk.first_ordinal + chunk.digest.rows,
        )

    def quarantined(self) -> Upload:
        """The upload once it may never be promoted."""
        return replace(self, state=UploadState.QUARANTINED)

    def shredded(self) -> Upload:
        """The upload once its key is to be destroyed."""
        return replace(self, state=UploadState.SHREDDED)

    def discarded(self) -> Upload:
        """The upload once it was given up, and its key is to be destroyed."""
        return replace(self, state=UploadState.DISCARDED)

    def promoted(self, *, at: datetime, log_index: int) -> Upload:
        """The upload once it is the version."""
        return replace(self, state=UploadState.PROMOTED, promoted_at=at, log_index=log_index)


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """A chunk that the manifest announces. `first_ordinal` counts stored rows from 0, `first_record` records."""

    number: int
    offset: int
    first_ordinal: int
    digest: ChunkDigest
    first_record: int

    @property
    def end(self) -> int:
        """The offset of the chunk after it."""
        return self.offset + self.digest.bytes


class ChunkPlan:
    """Where every chunk of a manifest begins. Memory: three integers a chunk."""

    def __init__(self, chunks: Sequence[ChunkDigest]) -> None:
        self._chunks = chunks
        self._offsets = list(accumulate((chunk.bytes for chunk in chunks), initial=0))
        self._ordinals = list(accumulate((chunk.rows for chunk in chunks), initial=0))
        self._records = list(accumulate((chunk.record_count for chunk in chunks), initial=0))

    def number(self, number: int) -> PlannedChunk:
        """The chunk with this number, counted from 0."""
        return PlannedChunk(
            number, self._offsets[number], self._ordinals[number], self._chunks[number], self._records[number]
        )

    def at(self, offset: int) -> PlannedChunk:
        """The chunk that begins at an offset.

        Raises:
            OutOfRange: no chunk of the manifest begins there.
        """
        number = bisect_left(self._offsets, offset)
        if number >= len(self._chunks) or self._offsets[number] != offset:
            raise OutOfRange(f"no chunk begins at offset {offset}", violations=(_OFFSET,))
        return self.number(number)


class Verdict(StrEnum):
    """What to do with a chunk."""

    APPEND = "append"
    ACKNOWLEDGE_AGAIN = "acknowledge again"
    EQUIVOCATION = "equivocation"


_OFFSET = FieldViolation("chunk.offset", "not an offset that is wanted; next_offset says which is")


def judge_chunk(upload: Upload, chunk: PlannedChunk, leaf_hash: bytes) -> Verdict:
    """Decides on bytes that hash to `leaf_hash` and claim the place of `chunk`.

    What is stored at an offset is what the manifest has there, so comparing with
    the manifest's leaf is comparing with what was stored.

    Raises:
        OutOfRange: chunks before it are missing.
        DigestMismatch: the place is free, the bytes are not those that were signed.
        Conflict: the upload was quarantined.
    """
    require_not_quarantined(upload)
    if chunk.offset > upload.next_offset:
        raise OutOfRange(f"offset {chunk.offset}, next is {upload.next_offset}", violations=(_OFFSET,))
    same_bytes = leaf_hash == chunk.digest.leaf_hash
    if chunk.offset < upload.next_offset:
        return Verdict.ACKNOWLEDGE_AGAIN if same_bytes else Verdict.EQUIVOCATION
    if not same_bytes:
        raise DigestMismatch(
            f"chunk {chunk.number} is not the one that was signed",
            violations=(FieldViolation(f"chunks[{chunk.number}]", "does not hash to its leaf in the manifest"),),
        )
    return Verdict.APPEND


def require_not_quarantined(upload: Upload) -> None:
    """Raises Conflict for an upload that was quarantined (EQUIVOCATION) or discarded, whatever is asked of it."""
    if upload.state is UploadState.DISCARDED:
        raise Conflict(f"upload {upload.id} was discarded: begin anew under another upload id")
    if upload.state is UploadState.QUARANTINED:
        raise Conflict(f"upload {upload.id} is quarantined", reason=Reason.EQUIVOCATION)


def require_complete(upload: Upload) -> None:
    """Raises OutOfRange / WRONG_OFFSET while chunks of the manifest are missing."""
    progress = (upload.next_offset, upload.next_batch, upload.next_ordinal)
    if progress != (upload.byte_count, upload.chunk_count, upload.row_count):
        raise OutOfRange(
            f"finished at offset {upload.next_offset} of {upload.byte_count}",
            violations=(FieldViolation("finish", "chunks are missing"),),
        )


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """What the database says of one stored batch; none of it is believed by itself."""

    number: int
    first_ordinal: int
    row_count: int
    leaf_hash: bytes


def require_stored(manifest: DatasetManifest, batches: Sequence[StoredBatch], stored_rows: int) -> None:
    """Compares what is stored with what was signed, before promotion.

    Raises:
        StoredDataUnreadable: a count, an ordinal or the root recomputed from the
            stored leaves is not the manifest's.
    """
    plan = ChunkPlan(manifest.chunks)
    expected = [
        StoredBatch(chunk.number, chunk.first_ordinal, chunk.digest.rows, chunk.digest.leaf_hash)
        for chunk in map(plan.number, range(len(manifest.chunks)))
    ]
    if list(batches) != expected or stored_rows != manifest.rows:
        raise StoredDataUnreadable("stored batches are not those of the manifest")
    if merkle.root([batch.leaf_hash for batch in batches]) != manifest.root:
        raise StoredDataUnreadable("the stored leaves do not give the signed root")
