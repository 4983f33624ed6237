"""Chunks are read off their messages by hand: whatever is read so, protobuf reads the same."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.client.chunk_requests import encode_chunk_request
from casemate.client.dataset_files import CutChunk
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import ConfigurationError
from casemate.transport.registry import RegisteredService
from services.datasets.chunk_messages import ChunkRequest, parse_push_request, parsing_chunks_in_place

OFFSETS = st.sampled_from([0, 1, 127, 128, 2**32, 2**53, 2**63 - 1]) | st.integers(0, 2**63 - 1)
PIECES = st.lists(st.binary(max_size=300), min_size=1, max_size=4)


def message_of(offset: int, data: bytes) -> bytes:
    return messages.PushDatasetRequest(chunk=messages.Chunk(offset=offset, data=data)).SerializeToString()


CHUNK = message_of(7, b"rows")


@given(offset=OFFSETS, pieces=PIECES)
def test_the_client_writes_the_bytes_that_protobuf_writes(offset, pieces):
    data = b"".join(pieces) or b"x"

    assert encode_chunk_request(offset, CutChunk(data, 1)) == message_of(offset, data)
    assert encode_chunk_request(offset, CutChunk([*pieces, b"x"], 1)) == message_of(offset, b"".join(pieces) + b"x")


@given(offset=OFFSETS, data=st.binary(min_size=1, max_size=300))
def test_a_chunk_is_read_where_it_lies(offset, data):
    raw = message_of(offset, data)

    read = parse_push_request(raw)

    assert isinstance(read, ChunkRequest)
    assert (read.offset, read.data, read.dataset) == (offset, data, "")
    assert read.data.obj is raw, "nothing was copied"


@pytest.mark.parametrize(
    "raw",
    [
        messages.PushDatasetRequest(dataset="digits", manifest=b"{}").SerializeToString(),
        messages.PushDatasetRequest(finish=messages.Finish()).SerializeToString(),
        messages.PushDatasetRequest(dataset="digits", chunk=messages.Chunk(offset=7, data=b"rows")).SerializeToString(),
        messages.PushDatasetRequest(chunk=messages.Chunk(offset=7)).SerializeToString(),
        message_of(2**64 - 1, b"rows"),
        CHUNK + CHUNK,
        CHUNK + messages.PushDatasetRequest(finish=messages.Finish()).SerializeToString(),
        CHUNK + messages.PushDatasetRequest(dataset="other").SerializeToString(),
        b"\x1a\x08\x12\x04rows\x08\x07",
        b"\x1a\x0a\x08\x07\x08\x09\x12\x04rows",
        b"\x1a\x0a\x08\x07\x12\x04rows\x18\x01",
        b"",
    ],
    ids=[
        *("manifest", "finish", "with a dataset", "no data", "offset of ten bytes", "twice", "and the end"),
        *("and a dataset", "data first", "two offsets", "an unknown field", "nothing"),
    ],
)
def test_every_other_form_is_left_to_protobuf(raw):
    assert parse_push_request(raw) == messages.PushDatasetRequest.FromString(raw)


@pytest.mark.parametrize("raw", [CHUNK[:-1], CHUNK[:1], CHUNK + b"\x00", b"\x1a" + b"\xff" * 11])
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(DecodeError):
        parse_push_request(raw)

    assert isinstance(parse_push_request(CHUNK), ChunkRequest)


@given(
    offset=OFFSETS,
    data=st.binary(max_size=140),
    place=st.integers(0, 12),
    put=st.binary(max_size=3),
    taken=st.integers(0, 3),
)
@example(offset=7, data=b"rows", place=1, put=b"\x88\x00", taken=1)  # a length in more bytes than it needs
def test_protobuf_agrees_on_whatever_is_read_by_hand(offset, data, place, put, taken):
    """Bytes near those of a chunk: read by hand or refused, never as another message than protobuf's."""
    raw = message_of(offset, data)
    raw = raw[:place] + put + raw[place + taken :]
    try:
        read = parse_push_request(raw)
    except DecodeError:
        return
    meant = messages.PushDatasetRequest.FromString(raw)
    if isinstance(read, ChunkRequest):
        assert meant.WhichOneof("step") == "chunk"
        assert (meant.dataset, meant.chunk.offset, meant.chunk.data) == ("", read.offset, read.data)
    else:
        assert read == meant


def test_only_the_requests_of_uploads_are_parsed_by_hand():
    push = grpc.stream_stream_rpc_method_handler(lambda requests, _context: requests, bytes, str.encode)
    other = grpc.unary_unary_rpc_method_handler(lambda request, _context: request, bytes, str.encode)

    served = parsing_chunks_in_place(RegisteredService("test.Datasets", {"PushDataset": push, "Other": other}))

    assert served.handlers["PushDataset"].request_deserializer is parse_push_request
    assert served.handlers["PushDataset"].response_serializer("a") == b"a"
    assert served.handlers["PushDataset"].stream_stream is push.stream_stream
    assert served.handlers["Other"] is other
    with pytest.raises(ConfigurationError, match=r"test\.Datasets has no PushDataset that streams both ways"):
        parsing_chunks_in_place(RegisteredService("test.Datasets", {"PushDataset": other}))
