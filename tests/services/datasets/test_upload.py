"""The upload state machine, without network or database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from casemate.errors import Conflict, DigestMismatch, OutOfRange, Reason, StoredDataUnreadable
from casemate.signing import merkle
from casemate.signing.statements import ChunkDigest, Column, DatasetManifest
from services.datasets.upload import (
    ChunkPlan,
    StoredBatch,
    Upload,
    UploadState,
    Verdict,
    judge_chunk,
    require_complete,
    require_stored,
)

CHUNKS = (b"1\n22\n", b"333\n", b"4444\n55555\n")
DIGESTS = tuple(ChunkDigest.of(chunk) for chunk in CHUNKS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MANIFEST = DatasetManifest(
    audience="datasets.casemate.internal",
    tenant="acme",
    dataset="digits",
    version=1,
    previous_root=None,
    format="csv",
    schema=(Column(name="n", type="integer"),),
    rows=5,
    bytes=sum(map(len, CHUNKS)),
    chunks=DIGESTS,
    root=merkle.root([digest.leaf_hash for digest in DIGESTS]),
    upload_id="0123456789abcdef",
    expires_at=NOW,
)
PLAN = ChunkPlan(MANIFEST.chunks)
FRESH = Upload(
    id=UUID(int=1),
    tenant="acme",
    dataset="digits",
    version=1,
    upload_id=MANIFEST.upload_id,
    state=UploadState.RECEIVING,
    manifest_sha256=bytes(32),
    schema_sha256=MANIFEST.schema_sha256,
    root=MANIFEST.root,
    signer_key_id="00",
    row_count=5,
    byte_count=MANIFEST.bytes,
    chunk_count=3,
    data_key=UUID(int=2),
    next_offset=0,
    next_batch=0,
    next_ordinal=0,
    started_at=NOW,
)


def _after(count: int) -> Upload:
    upload = FRESH
    for number in range(count):
        upload = upload.after(PLAN.number(number))
    return upload


def test_every_chunk_is_appended_in_order_until_the_upload_is_complete():
    upload = FRESH
    for data in CHUNKS:
        chunk = PLAN.at(upload.next_offset)
        assert judge_chunk(upload, chunk, merkle.leaf_hash(data)) is Verdict.APPEND
        upload = upload.after(chunk)

    require_complete(upload)
    assert (upload.next_batch, upload.next_ordinal) == (3, 5)


def test_the_same_bytes_again_are_acknowledged_and_other_bytes_are_equivocation():
    chunk = PLAN.at(0)

    assert judge_chunk(_after(2), chunk, merkle.leaf_hash(CHUNKS[0])) is Verdict.ACKNOWLEDGE_AGAIN
    assert judge_chunk(_after(2), chunk, merkle.leaf_hash(b"1\n23\n")) is Verdict.EQUIVOCATION


def test_other_bytes_at_a_free_offset_are_a_digest_mismatch():
    with pytest.raises(DigestMismatch) as caught:
        judge_chunk(FRESH, PLAN.at(0), merkle.leaf_hash(b"1\n23\n"))

    assert caught.value.violations[0].field == "chunks[0]"


@pytest.mark.parametrize("offset", [-1, 1, 4, 6, MANIFEST.bytes, 2**64 - 1])
def test_an_offset_at_which_no_chunk_begins_is_out_of_range(offset):
    with pytest.raises(OutOfRange):
        PLAN.at(offset)


def test_a_chunk_ahead_of_the_wanted_one_is_out_of_range():
    with pytest.raises(OutOfRange):
        judge_chunk(_after(1), PLAN.number(2), DIGESTS[2].leaf_hash)
    assert judge_chunk(_after(2), PLAN.number(2), DIGESTS[2].leaf_hash) is Verdict.APPEND


def test_a_quarantined_upload_takes_nothing_more():
    with pytest.raises(Conflict) as caught:
        judge_chunk(_after(1).quarantined(), PLAN.number(1), DIGESTS[1].leaf_hash)

    assert caught.value.reason is Reason.EQUIVOCATION


def test_finishing_before_the_last_chunk_is_out_of_range():
    with pytest.raises(OutOfRange):
        require_complete(_after(2))


STORED = [
    StoredBatch(0, 0, 2, DIGESTS[0].leaf_hash),
    StoredBatch(1, 2, 1, DIGESTS[1].leaf_hash),
    StoredBatch(2, 3, 2, DIGESTS[2].leaf_hash),
]


def test_what_was_stored_as_signed_may_be_promoted():
    require_stored(MANIFEST, STORED, 5)


@pytest.mark.parametrize(
    ("batches", "rows"),
    [
        (STORED[:2], 5),
        (STORED, 4),
        ([STORED[1], STORED[0], STORED[2]], 5),
        ([*STORED[:2], replace(STORED[2], leaf_hash=bytes(32))], 5),
        ([*STORED[:2], replace(STORED[2], first_ordinal=4)], 5),
        ([*STORED[:2], replace(STORED[2], row_count=3)], 5),
        ([*STORED, STORED[2]], 5),
    ],
)
def test_what_differs_from_what_was_signed_may_not_be_promoted(batches, rows):
    with pytest.raises(StoredDataUnreadable):
        require_stored(MANIFEST, batches, rows)
