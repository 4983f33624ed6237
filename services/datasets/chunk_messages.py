"""The messages of an upload, read off their bytes so that a chunk is copied nowhere.

protobuf copies a field's bytes into the message and once more out of it, a millisecond
a MiB of fresh memory. Read here is only the one form in which a chunk alone is written
by every protobuf library: field 3, as long as the rest of the message, and in it offset
and data, in this order, each once and nothing else. All other bytes go to protobuf,
which decides what they mean.

If this fails: a chunk is read as another one, and refused, as it does not hash to its leaf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import grpc

from casemate.datasets.v1.dataset_service_pb2 import PushDatasetRequest
from casemate.errors import ConfigurationError
from casemate.transport.registry import RegisteredService

_METHOD: Final = "PushDataset"
_CHUNK: Final = 3 << 3 | 2
_OFFSET: Final = 1 << 3
_DATA: Final = 2 << 3 | 2
"""Tags of `PushDatasetRequest.chunk`, `Chunk.offset` and `Chunk.data`: number and wire type."""

_MOST_VARINT: Final = 9
"""Bytes of a number below 2^63. A tenth byte may overflow: protobuf's to judge."""


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """A `PushDatasetRequest` that is a chunk and names no dataset; `data` lies in the message as it came."""

    offset: int
    data: memoryview = field(repr=False)
    dataset: str = ""


def parse_push_request(raw: bytes) -> PushDatasetRequest | ChunkRequest:
    """The message that these bytes are.

    Raises:
        DecodeError: they are none.
    """
    return _parse_chunk(raw) or PushDatasetRequest.FromString(raw)


def parsing_chunks_in_place(service: RegisteredService) -> RegisteredService:
    """The datasets service, whose uploads get their messages by `parse_push_request`.

    Raises:
        ConfigurationError: it has no uploads.
    """
    handler = service.handlers.get(_METHOD)
    if handler is None or handler.stream_stream is None:
        raise ConfigurationError(f"{service.name} has no {_METHOD} that streams both ways")
    parsed = grpc.stream_stream_rpc_method_handler(
        handler.stream_stream, request_deserializer=parse_push_request, response_serializer=handler.response_serializer
    )
    return RegisteredService(service.name, MappingProxyType({**service.handlers, _METHOD: parsed}))


def _parse_chunk(raw: bytes) -> ChunkRequest | None:
    try:
        length, at = _tagged(raw, 0, _CHUNK)
        if length != len(raw) - at:
            return None
        offset = 0
        if raw[at] == _OFFSET:
            offset, at = _tagged(raw, at, _OFFSET)
        length, at = _tagged(raw, at, _DATA)
    except (IndexError, ValueError):
        return None
    return ChunkRequest(offset, memoryview(raw)[at:]) if length == len(raw) - at else None


def _tagged(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    """The number behind a tag, and where it ends.

    Raises:
        IndexError: the bytes end before it does.
        ValueError: another tag is there, or a longer number.
    """
    if raw[at] != tag:
        raise ValueError("another tag")
    number = 0
    for place in range(_MOST_VARINT):
        byte = raw[at + 1 + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + 2 + place
    raise ValueError("a longer number")
