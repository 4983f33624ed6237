"""What one stored row of Arrow is: a single record batch, read off its frame and header before Arrow reads any of it.

A reader of a stream goes on behind a message as long as there are bytes, takes
dictionaries and compressed bodies as they come, and a header may name more
records than its body holds. Here a row is one plain record batch, and not a byte
more. Needs no pyarrow.

If this fails: a row holds records that nobody counted, or costs whoever reads it
any amount of memory.
"""

from __future__ import annotations

import struct
from typing import Final

from casemate.signing.arrow_buffers import require_disjoint_buffers, table_field
from casemate.signing.framing import MAXIMUM_LONE_ROW_BYTES, MAXIMUM_ROW_BYTES, MAXIMUM_ROW_RECORDS

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_FRAME_BYTES: Final = 8
"""Of an encapsulated message: the mark, and how long the metadata is."""

_TYPE, _HEADER, _BODY_BYTES = 1, 2, 3
_RECORD_BATCH: Final = 3
_LENGTH, _COMPRESSION, _VARIADIC = 0, 3, 4
"""Places of fields in Arrow's Message.fbs: of `Message`, the header's type in its union, then of `RecordBatch`."""


def require_one_batch(row: bytes) -> int:
    """How many records a row holds, if it is one record batch that a version may hold, and no byte more.

    Args:
        row: as it was signed.

    Raises:
        ValueError: it is anything else: another message, several, a part of one, compressed, too large, or one whose
            buffers share bytes.
    """
    try:
        return _records_of(row)
    except (struct.error, IndexError):
        raise ValueError("no Arrow message") from None


def _records_of(row: bytes) -> int:
    mark, size = struct.unpack_from("<4si", row)
    if mark != _CONTINUATION or size <= 0:
        raise ValueError("no Arrow message")
    metadata = bytes(row[_FRAME_BYTES : _FRAME_BYTES + size])
    message = struct.unpack_from("<I", metadata)[0]
    if _FRAME_BYTES + size + _number(metadata, message, _BODY_BYTES) != len(row):
        raise ValueError("not one whole message")
    kind, place = table_field(metadata, message, _TYPE), table_field(metadata, message, _HEADER)
    if kind is None or metadata[kind] != _RECORD_BATCH or place is None:
        raise ValueError("a message that is no record batch")
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    if any(table_field(metadata, batch, field) is not None for field in (_COMPRESSION, _VARIADIC)):
        raise ValueError("a record batch that is compressed, or of another layout")
    records = _number(metadata, batch, _LENGTH)
    if not 1 <= records <= MAXIMUM_ROW_RECORDS:
        raise ValueError(f"a record batch without 1 to {MAXIMUM_ROW_RECORDS} records")
    if len(row) > (MAXIMUM_LONE_ROW_BYTES if records == 1 else MAXIMUM_ROW_BYTES):
        raise ValueError("a record batch of more than 256 KiB, or one record of more than 8 MiB")
    require_disjoint_buffers(metadata, len(row) - _FRAME_BYTES - size)
    return records


def _number(metadata: bytes, table: int, field: int) -> int:
    """A 64-bit integer; flatbuffers leaves out what is zero."""
    place = table_field(metadata, table, field)
    number: int = 0 if place is None else struct.unpack_from("<q", metadata, place)[0]
    return number
