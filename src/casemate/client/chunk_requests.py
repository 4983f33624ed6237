"""A chunk as the message that carries it, written by hand: protobuf would copy its bytes twice more.

The form is the one that protobuf writes (a test compares them); the service reads that form in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.datasets.v1 import dataset_service_pb2 as messages

if TYPE_CHECKING:
    import grpc

    from casemate.client.dataset_files import CutChunk

_CHUNK: Final = b"\x1a"
_OFFSET: Final = b"\x08"
_DATA: Final = b"\x12"
"""Tags of `PushDatasetRequest.chunk`, `Chunk.offset` and `Chunk.data`: number << 3 | wire type."""

_SERVICE: Final = messages.DESCRIPTOR.services_by_name["DatasetService"].full_name


def push_call(channel: grpc.Channel) -> grpc.StreamStreamMultiCallable[bytes, messages.PushDatasetResponse]:
    """The rpc PushDataset, whose requests are given as their bytes."""
    return channel.stream_stream(
        f"/{_SERVICE}/PushDataset", response_deserializer=messages.PushDatasetResponse.FromString
    )


def encode_chunk_request(offset: int, chunk: CutChunk) -> bytes:
    """The bytes of a `PushDatasetRequest` with this chunk; those of the chunk are copied once."""
    size = chunk.size
    place = _OFFSET + _varint(offset) if offset else b""
    head = place + _DATA + _varint(size)
    return b"".join((_CHUNK, _varint(len(head) + size), head, *chunk.parts))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
