"""Sealed chunks as COPY takes them: joined or sealed in place, they are the same rows in the same form."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import pytest

from casemate.sealing.keys import DataKey
from casemate.sealing.rows import BatchContext, SealedBatch, open_batch, seal_rows
from casemate.signing.statements import ChunkDigest
from services.datasets.copying import SealedChunk, encode_chunk
from services.datasets.upload import PlannedChunk

KEY = DataKey(bytes(range(32)))
CONTEXT = BatchContext(tenant="acme", dataset="digits", version=1, batch=3, schema_sha256=bytes(32))
FRAME = struct.Struct(">hi16siiiqi")
KIB = 1024


def sealed(upload: UUID, rows: Sequence[bytes]) -> SealedChunk:
    chunk = PlannedChunk(3, 0, 70, ChunkDigest(leaf_hash=bytes(32), bytes=8 << 20, rows=len(rows)), 70)
    batch = seal_rows(KEY, CONTEXT, rows, first_ordinal=70)
    return encode_chunk(upload, chunk, batch, [len(row) + 16 for row in rows])


def copied(found: SealedChunk) -> Iterator[tuple[int, UUID, int, int, bytes]]:
    """Columns, upload, batch, ordinal and value of each row, as PostgreSQL reads them."""
    data = b"".join(found.rows)
    while data:
        columns, _, upload, _, batch, _, ordinal, size = FRAME.unpack_from(data)
        yield columns, UUID(bytes=upload), batch, ordinal, data[FRAME.size : FRAME.size + size]
        data = data[FRAME.size + size :]


@pytest.mark.parametrize(
    "sizes",
    [[1], [0, 5, 0], [8 * KIB - 17], [8 * KIB - 16], [256 * KIB] * 5, [3 * KIB * KIB], [1, 64 * KIB], [100] * 3000],
)
def test_rows_of_any_size_are_copied_as_they_open(sizes):
    upload, rows = uuid4(), [secrets.token_bytes(size) for size in sizes]
    found = sealed(upload, rows)
    read = list(copied(found))
    assert [each[:4] for each in read] == [(4, upload, 3, 70 + place) for place in range(len(rows))]
    batch = SealedBatch(
        salt=found.salt, commitment=found.commitment, first_ordinal=70, rows=tuple(each[4] for each in read)
    )
    assert open_batch(KEY, CONTEXT, batch) == rows
    assert max(map(len, found.rows)) <= KIB * KIB
