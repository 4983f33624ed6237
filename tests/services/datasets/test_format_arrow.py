"""Arrow from a stranger: what is no valid batch of the declared columns is refused by number, before it costs much."""

from __future__ import annotations

import struct
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.client.arrow_batches import ArrowBatches
from casemate.errors import InvalidRequest, Reason, StoredDataUnreadable
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.columns import Column
from casemate.signing.framing import MAXIMUM_LONE_ROW_BYTES
from services.datasets.records import record_check, split_records

COLUMNS = (
    Column(name="id", type="integer", minimum=0, maximum=99, storage="int32"),
    Column(name="name", type="text", nullable=True, categories=("a", "b")),
    Column(name="weight", type="number", maximum=10),
    Column(name="embedding", type="vector", storage="float32", minimum=-1, maximum=1),
    Column(name="at", type="timestamp"),
    Column(name="extra", type="json", nullable=True),
    Column(name="blob", type="bytes"),
)
SCHEMA = arrow_schema(COLUMNS)
CHECK = record_check("arrow", COLUMNS)
GOOD = {
    "id": [1, 2, 99],
    "name": ["a", None, "b"],
    "weight": [0.5, -3, 10],
    "embedding": [[0.5, -1], [], [1]],
    "at": [0, 1, 2],
    "extra": ['{"x":[1]}', None, "1"],
    "blob": [b"", b"x", b"\x00"],
}


def batch(schema: pa.Schema = SCHEMA, **changes) -> pa.RecordBatch:
    return pa.record_batch(
        [pa.array(values, SCHEMA.field(name).type) for name, values in {**GOOD, **changes}.items()], schema=schema
    )


def row(**changes) -> bytes:
    return batch(**changes).serialize().to_pybytes()


def violations(*rows: bytes, first_record: int = 0) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        CHECK.require(rows, first_record=first_record)
    assert caught.value.reason is Reason.RECORD_INVALID
    assert caught.value.__suppress_context__
    return [(violation.field, violation.description) for violation in caught.value.violations]


def test_a_batch_of_the_declared_columns_passes_and_its_records_are_counted():
    assert CHECK.require([row(), row()], first_record=0) == 6


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"id": [1, None, 3]}, "records[101].id", "empty"),
        ({"id": [1, 2, 100]}, "records[102].id", "minimum and maximum"),
        ({"id": [-1, 2, 3]}, "records[100].id", "minimum and maximum"),
        ({"name": ["a", "c", "b"]}, "records[101].name", "categories"),
        ({"weight": [1, float("nan"), 1]}, "records[101].weight", "finite"),
        ({"weight": [float("-inf"), 1, 1]}, "records[100].weight", "finite"),
        ({"weight": [1, 1, 10.5]}, "records[102].weight", "minimum and maximum"),
        ({"embedding": [[0], [1, None], []]}, "records[101].embedding", "finite"),
        ({"embedding": [[], [0], [0, float("inf")]]}, "records[102].embedding", "finite"),
        ({"embedding": [[], [0, 1.5], []]}, "records[101].embedding", "minimum and maximum"),
        ({"embedding": [[], None, []]}, "records[101].embedding", "empty"),
        ({"at": [0, -(2**62), 0]}, "records[101].at", "years"),
        ({"extra": ["{", "1", "2"]}, "records[100].extra", "JSON"),
        ({"extra": ['{"a":1,"a":2}', "1", "2"]}, "records[100].extra", "JSON"),
        ({"extra": ["1", "[" * 17 + "]" * 17, "2"]}, "records[101].extra", "JSON"),
        ({"blob": [b"", None, b""]}, "records[101].blob", "empty"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_record_and_column(changes, field, said):
    ((found, description),) = violations(row(**changes), first_record=100)
    assert found == field
    assert said in description


def test_the_first_bad_records_of_several_rows_are_named_in_order():
    found = violations(row(), row(id=[1, 100, 3], weight=[99, 0, 0]), row(blob=[None, b"", b""]))
    assert [field for field, _ in found] == ["records[3].weight", "records[4].id", "records[6].blob"]


def written(schema: pa.Schema, *batches: pa.RecordBatch, **options) -> list[bytes]:
    """The messages of a stream, the schema's left out."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for each in batches:
            writer.write_batch(each)
    data = sink.getvalue().to_pybytes()[:-8]
    return split_records(data, field="", encoding="arrow")[1:]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_batch_is_refused_before_it_is_unpacked(codec):
    """Eight megabytes of nothing compress to a few hundred bytes."""
    bomb = batch(blob=[bytes(8 << 20)] * 3)
    (packed,) = written(SCHEMA, bomb, compression=codec)
    assert len(packed) < 200_000
    before = pa.total_allocated_bytes()

    assert "compressed" in violations(packed)[0][1]

    assert pa.total_allocated_bytes() - before < 1 << 20
    assert CHECK.require(written(SCHEMA, batch()), first_record=0) == 3


def test_a_dictionary_is_refused():
    schema = pa.schema([pa.field("name", pa.dictionary(pa.int8(), pa.utf8()))])
    rows = written(
        schema, pa.record_batch([pa.array(["a", "b"]).dictionary_encode().cast(schema.field(0).type)], schema=schema)
    )
    assert len(rows) == 2
    assert "no record batch" in violations(rows[0])[0][1]


def test_a_schema_message_is_refused():
    assert "no record batch" in violations(SCHEMA.serialize().to_pybytes())[0][1]


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([("id", pa.int32())]),
        pa.schema([*SCHEMA, pa.field("more", pa.int8())]).remove(6),
        SCHEMA.set(1, pa.field("name", pa.struct([("a", pa.utf8())]))),
        SCHEMA.set(0, pa.field("id", pa.list_(pa.int32()))),
    ],
    ids=["fewer columns", "another column", "nested", "list"],
)
def test_a_batch_of_other_columns_is_refused(schema):
    data = pa.record_batch([pa.nulls(3, field.type) for field in schema], schema=schema)
    assert violations(data.serialize().to_pybytes())


def test_a_batch_without_records_or_with_too_many_is_refused():
    many = pa.concat_batches([batch()] * 342)
    for wrong in (batch().slice(0, 0), many):
        assert "1024" in violations(wrong.serialize().to_pybytes())[0][1]
    assert CHECK.require([many.slice(0, 1024).serialize().to_pybytes()], first_record=0) == 1024


def test_a_batch_is_at_most_256_kib_unless_it_is_one_record_of_at_most_8_mib():
    large = batch(blob=[bytes(300_000), b"", b""])
    assert "256 KiB" in violations(large.serialize().to_pybytes())[0][1]
    assert CHECK.require([large.slice(0, 1).serialize().to_pybytes()], first_record=0) == 1
    enormous = batch(blob=[bytes(MAXIMUM_LONE_ROW_BYTES), b"", b""]).slice(0, 1)
    assert "8 MiB" in violations(enormous.serialize().to_pybytes())[0][1]


def test_offsets_that_point_out_of_their_buffer_are_refused():
    good = row(name=[None] * 3, extra=[None] * 3, blob=[b"abcd", b"efgh", b"ijkl"])
    offsets = struct.pack("<4i", 0, 4, 8, 12)
    assert good.count(offsets) == 1
    for wrong in ((0, 4, 8, 1 << 30), (0, 8, 4, 12), (-4, 4, 8, 12)):
        assert violations(good.replace(offsets, struct.pack("<4i", *wrong)))
    assert CHECK.require([good], first_record=0) == 3


def test_a_text_that_is_not_utf_8_is_refused():
    good = row(extra=['"xyz"', None, None])
    assert violations(good.replace(b'"xyz"', b'"x\xff\xfe"'))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no arrow at all",
        b"\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(64),
        b"\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(64),
        row()[:-8],
        row() + b"\x00",
        row()[4:],
        b"\xff\xff\xff\xff\x40\x00\x00\x00" + b"\xee" * 64,
    ],
    ids=["nothing", "text", "end mark", "huge", "negative", "cut", "trailing", "no mark", "no flatbuffer"],
)
def test_a_chunk_that_is_not_whole_messages_is_refused_by_its_number(data):
    if not data:
        assert (
            split_records(data, field="chunks[3]", encoding="arrow") == []
        )  # whose count is none the manifest can have
        return
    with pytest.raises(InvalidRequest) as caught:
        split_records(data, field="chunks[3]", encoding="arrow")
    assert caught.value.violations[0].field == "chunks[3]"
    assert split_records(row() * 2, field="chunks[3]", encoding="arrow") == [row()] * 2


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, len(row()) - 1), value=st.integers(0, 255), length=st.integers(1, 8))
def test_any_bytes_changed_give_a_valid_batch_or_our_refusal(place, value, length):
    damaged = bytearray(row())
    damaged[place : place + length] = bytes([value]) * len(damaged[place : place + length])
    try:
        for each in split_records(bytes(damaged), field="", encoding="arrow"):
            assert CHECK.require([each], first_record=0) <= 1024
    except InvalidRequest:
        pass


def overlapping(columns: int, text: str) -> tuple[tuple[Column, ...], bytes, bytes]:
    """Columns of JSON, a batch of one record of them, and the same with all of them over the first one's bytes."""
    schema = tuple(Column(name=f"j{number}", type="json") for number in range(columns))
    arrays = [pa.array([text]), *[pa.array(["1"])] * (columns - 1)]
    good = pa.record_batch(arrays, schema=arrow_schema(schema)).serialize().to_pybytes()
    # Three buffers a column, each sixteen bytes of the header: where they begin is after their count.
    begun = good.index(struct.pack("<I", 3 * columns) + struct.pack("<qq", 0, 0)) + 4
    bad = good[: begun + 48] + good[begun : begun + 48] * (columns - 1) + good[begun + 48 * columns :]
    return schema, good, bad


def test_columns_that_share_their_bytes_are_refused_by_the_service_and_by_the_reader():
    schema, good, bad = overlapping(64, "[" + "1," * 50_000 + "1]")
    assert len(bad) == len(good)
    check, read = record_check("arrow", schema), ArrowBatches(schema, encoding="arrow")
    before = pa.total_allocated_bytes()
    with pytest.raises(InvalidRequest) as caught:
        check.require([bad], first_record=7)
    assert caught.value.violations[0].field == "records[7]"
    with pytest.raises(StoredDataUnreadable):
        read([bad])
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert check.require([good], first_record=7) == 1
    assert read([good]).num_rows == 1


def test_a_text_of_json_is_less_than_1_mib_however_large_its_record_may_be():
    schema = (Column(name="said", type="json"), Column(name="blob", type="bytes"))
    check = record_check("arrow", schema)

    def lone(text: str) -> bytes:
        arrays = [pa.array([text]), pa.array([bytes(3 << 20)])]
        return pa.record_batch(arrays, schema=arrow_schema(schema)).serialize().to_pybytes()

    with pytest.raises(InvalidRequest) as caught:
        check.require([lone(f'"{"x" * (1 << 20)}"')], first_record=0)
    assert caught.value.violations[0].field == "records[0].said"
    assert check.require([lone(f'"{"x" * ((1 << 20) - 3)}"')], first_record=0) == 1


@pytest.mark.parametrize(
    ("bounds", "bad", "said"),
    [({"maximum": 0}, 1, "minimum and maximum"), ({}, None, "finite")],
    ids=["out of bounds", "a gap"],
)
def test_a_bad_element_among_eight_million_is_found_without_making_each_a_value(bounds, bad, said):
    """As Python's they cost 64 MB, which a supplier could have the service spend with every chunk."""
    schema = (Column(name="v", type="vector", storage="int8", **bounds),)
    check, count = record_check("arrow", schema), MAXIMUM_LONE_ROW_BYTES - (1 << 21)

    def lone(*last: int | None) -> bytes:
        zeros = pa.Array.from_buffers(pa.int8(), count, [None, pa.py_buffer(bytes(count))])
        elements = pa.concat_arrays([zeros, pa.array(last, pa.int8())])
        lists = pa.ListArray.from_arrays(pa.array([0, len(elements)], pa.int32()), elements)
        return pa.record_batch([lists], schema=arrow_schema(schema)).serialize().to_pybytes()

    wrong = lone(0, bad)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            check.require([wrong], first_record=4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.violations[0].field == "records[4].v"
    assert said in caught.value.violations[0].description
    assert check.require([lone(0, 0)], first_record=4) == 1


@given(
    st.lists(st.none() | st.lists(st.integers(-3, 3), max_size=4), min_size=1, max_size=12),
    st.integers(-3, 0),
    st.integers(0, 3),
)
def test_the_first_record_out_of_bounds_is_the_one_that_is_named(lists, low, high):
    schema = (Column(name="v", type="vector", storage="int8", minimum=low, maximum=high, nullable=True),)
    check = record_check("arrow", schema)
    row = pa.record_batch([pa.array(lists, pa.list_(pa.int8()))], schema=arrow_schema(schema)).serialize().to_pybytes()
    first = next((n for n, some in enumerate(lists) if any(not low <= each <= high for each in some or ())), None)
    if first is None:
        assert check.require([row], first_record=0) == len(lists)
        return
    with pytest.raises(InvalidRequest) as caught:
        check.require([row], first_record=0)
    assert caught.value.violations[0].field == f"records[{first}].v"
