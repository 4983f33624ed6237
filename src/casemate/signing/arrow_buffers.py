"""Where the buffers of an Arrow record batch lie, read off its header before Arrow makes arrays of them.

Nothing in the format keeps columns from sharing bytes: thousands of columns over the
same megabytes are a message of megabytes that is read as gigabytes.

If this fails: a small row costs whoever reads it any amount of memory and time.
"""

from __future__ import annotations

import struct
from typing import Final

_MESSAGE_HEADER: Final = 2
_BATCH_BUFFERS: Final = 2
"""Places of fields in Arrow's Message.fbs: `Message.header` and `RecordBatch.buffers`."""


def require_disjoint_buffers(metadata: bytes, body_bytes: int) -> None:
    """Returns if every buffer lies within the body, and no two of them share a byte.

    Args:
        metadata: of a message that is a record batch, whose frame Arrow has verified.
        body_bytes: how long its body is.

    Raises:
        ValueError: they do not.
        struct.error: the header is shorter than it says.
    """
    message = struct.unpack_from("<I", metadata)[0]
    place = table_field(metadata, message, _MESSAGE_HEADER)
    if place is None:
        raise ValueError("a message without a header")
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    place = table_field(metadata, batch, _BATCH_BUFFERS)
    if place is None:
        return
    vector = place + struct.unpack_from("<I", metadata, place)[0]
    count = struct.unpack_from("<I", metadata, vector)[0]
    if vector + 4 + 16 * count > len(metadata):
        raise ValueError("fewer buffers than the header says")
    end = 0
    for begun, length in sorted(struct.iter_unpack("<qq", metadata[vector + 4 : vector + 4 + 16 * count])):
        if length < 0 or (length and begun < end) or begun + length > body_bytes:
            raise ValueError("buffers that share bytes or leave the body")
        if length:
            end = begun + length


def table_field(metadata: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffers table is, if it is there.

    Raises:
        ValueError: the table is none.
        struct.error: it ends before the field.
    """
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise ValueError("no flatbuffers table")
    if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    offset: int = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
