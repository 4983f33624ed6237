"""Proven rows as Arrow: the whole of every row is judged before a value of it is read."""

from __future__ import annotations

import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.client.arrow_batches import ArrowBatches
from casemate.errors import StoredDataUnreadable
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.arrow_rows import require_one_batch
from casemate.signing.columns import Column

COLUMNS = (
    Column(name="id", type="integer"),
    Column(name="name", type="text", nullable=True),
    Column(name="vector", type="vector", storage="int8"),
)
SCHEMA = arrow_schema(COLUMNS)
READ = ArrowBatches(COLUMNS, encoding="arrow")
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def batch(ids=(1, 2), names=("abcd", "efgh"), vectors=((1, 2), (3,))) -> pa.RecordBatch:
    values = zip((ids, names, vectors), SCHEMA, strict=True)
    return pa.record_batch([pa.array(some, field.type) for some, field in values], schema=SCHEMA)


def row(**changes) -> bytes:
    return batch(**changes).serialize().to_pybytes()


def compressed() -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_batch(batch(names=["x" * 1000] * 2))
    data = sink.getvalue().to_pybytes()
    return data[len(SCHEMA.serialize()) : -len(END)]


def dictionary() -> bytes:
    schema = pa.schema([pa.field("name", pa.dictionary(pa.int8(), pa.utf8()))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a"]).dictionary_encode().cast(schema[0].type)], schema=schema))
    return sink.getvalue().to_pybytes()[len(schema.serialize()) :]


def pointing(*offsets: int) -> bytes:
    """The names' offsets, changed."""
    good = row(vectors=((1,), (2, 3)))
    sound = struct.pack("<3i", 0, 4, 8)
    assert good.count(sound) == 1
    return good.replace(sound, struct.pack("<3i", *offsets))


def test_rows_of_record_batches_become_one_of_the_declared_columns():
    found = READ([row(), row(ids=[3, 4], names=[None, "z"])])
    assert found.schema.equals(SCHEMA)
    assert found["id"].to_pylist() == [1, 2, 3, 4]
    assert found["name"].to_pylist() == ["abcd", "efgh", None, "z"]
    assert READ([]).num_rows == 0


@pytest.mark.parametrize(
    "bad",
    [
        row() + row(),
        row() + END,
        row() + b"\0" * 8,
        row() + SCHEMA.serialize().to_pybytes(),
        SCHEMA.serialize().to_pybytes(),
        END,
        b"",
        row()[:-8],
        row()[4:],
        compressed(),
        dictionary(),
        batch().slice(0, 0).serialize().to_pybytes(),
        pa.concat_batches([batch()] * 513).serialize().to_pybytes(),
        row(names=["x" * 300_000, "y"]),
        row(ids=[1, None]),
        row(vectors=[[1], None]),
        pointing(0, 4, 1 << 24),
        pointing(-(1 << 24), 4, 8),
        pointing(0, 8, 4),
        row().replace(b"abcd", b"a\xff\xfed"),
    ],
    ids=[
        *("two messages", "an end mark", "padding", "a schema behind it", "a schema", "an end", "nothing", "cut"),
        *("no mark", "compressed", "a dictionary", "no record", "too many", "too large", "an empty id"),
        *("an empty vector", "an offset beyond", "an offset before", "offsets back", "no UTF-8"),
    ],
)
def test_a_row_that_is_not_one_sound_batch_of_the_columns_is_refused_beside_good_ones(bad):
    for rows in ([bad], [row(), bad], [bad, row()]):
        with pytest.raises(StoredDataUnreadable):
            READ(rows)
    assert READ([row(), row()]).num_rows == 4


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, len(row()) - 1), value=st.integers(0, 255), length=st.integers(1, 8))
def test_any_bytes_changed_give_a_sound_batch_or_our_refusal(place, value, length):
    damaged = bytearray(row())
    damaged[place : place + length] = bytes([value]) * len(damaged[place : place + length])
    try:
        found = READ([bytes(damaged)])
    except StoredDataUnreadable:
        return
    found.validate(full=True)
    assert found.num_rows == require_one_batch(bytes(damaged))


@pytest.mark.parametrize(
    ("encoding", "line", "good"),
    [
        ("jsonl", b"[1]", b'{"a":1}'),
        ("jsonl", b"7", b'{"a":1}'),
        ("jsonl", b'{"a":' + b"[" * 100_000, b'{"a":1}'),
        ("jsonl", b'{"a":null}', b'{"a":1}'),
        ("jsonl", b"{}", b'{"a":1}'),
        ("jsonl", b'{"a":"x"}', b'{"a":1}'),
        ("jsonl", b'{"a":' + b"9" * 5000 + b"}", b'{"a":9}'),
        ("csv", b"1,2", b"1"),
        ("csv", b"x", b"1"),
        ("csv", b'"1', b'"1"'),
        ("csv", b"\xff", b"1"),
    ],
)
def test_a_line_that_does_not_fit_is_our_refusal_whatever_it_is(encoding, line, good):
    read = ArrowBatches((Column(name="a", type="integer"),), encoding=encoding)
    with pytest.raises(StoredDataUnreadable):
        read([line])
    assert read([good]).num_rows == 1
