"""Arrow files of any make: batches of any size in bounded memory, and offsets that lead out of the file."""

from __future__ import annotations

import struct

import pyarrow as pa
import pytest
from pyarrow import parquet

from casemate.client.arrow_files import cut_batches
from casemate.client.dataset_files import open_dataset_file
from casemate.errors import InvalidRequest
from casemate.signing.arrow_form import arrow_stream
from casemate.signing.columns import Column
from services.datasets.records import split_records

MIB = 1 << 20


def of_zeros(kind: pa.DataType, count: int) -> pa.Array:
    """Many values, made at once."""
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(bytes(count * kind.bit_width // 8))])


def large_texts(count: int, size: int) -> pa.Array:
    offsets = pa.array(range(0, count * size + 1, size), pa.int64())
    return pa.LargeStringArray.from_buffers(count, offsets.buffers()[1], pa.py_buffer(b"x" * count * size))


WHOLE = {
    "widened integers": (of_zeros(pa.int8(), 6 * MIB), Column(name="a", type="integer")),
    "narrowed integers": (of_zeros(pa.int64(), 4 * MIB), Column(name="a", type="integer", storage="int32")),
    "other texts": (large_texts(500_000, 60), Column(name="a", type="text")),
    "a text that many records name": (
        pa.DictionaryArray.from_arrays(of_zeros(pa.int8(), 600), pa.array(["y" * 100_000])),
        Column(name="a", type="text"),
    ),
    "lists of a fixed size, of other elements": (
        pa.FixedSizeListArray.from_arrays(of_zeros(pa.float64(), 4 * MIB), 64),
        Column(name="a", type="vector", storage="float32"),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_of_any_size_is_laid_out_anew_in_bounded_memory(name):
    values, column = WHOLE[name]
    before, most, rows, records = pa.total_allocated_bytes(), 0, [], 0

    for chunk in cut_batches(iter([pa.record_batch([values], names=["a"])]), (column,), chunk_bytes=MIB):
        most = max(most, pa.total_allocated_bytes() - before)
        records += chunk.records
        rows.append(chunk.parts[0].to_pybytes())

    assert records == len(values)
    assert most < 12 * MIB
    first = pa.ipc.open_stream(b"".join(arrow_stream(rows[:1], (column,)))).read_all()
    assert first["a"].to_pylist()[:2] == values.slice(0, 2).to_pylist()


def test_parts_of_a_batch_give_the_records_in_order_with_gaps_and_lists():
    count = 140_000
    table = pa.table(
        {
            "n": pa.array([None if n % 7 == 0 else n for n in range(count)], pa.int32()),
            "v": pa.array([None if n % 5 == 0 else [n, -n][: n % 3] for n in range(count)], pa.large_list(pa.int32())),
        }
    )
    columns = (Column(name="n", type="integer", nullable=True), Column(name="v", type="vector", nullable=True))
    chunks = list(cut_batches(iter(table.to_batches()), columns, chunk_bytes=MIB))

    rows = [row for chunk in chunks for row in split_records(chunk.data, field="", encoding="arrow")]
    read = pa.ipc.open_stream(b"".join(arrow_stream(rows, columns))).read_all()
    assert read["n"].to_pylist() == table["n"].to_pylist()
    assert read["v"].to_pylist() == table["v"].to_pylist()


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("offsets", [(0, 4, 1 << 26), (-(1 << 20), 4, 8), (0, 8, 4)], ids=["far", "before", "back"])
def test_a_file_whose_offsets_lead_out_of_it_or_back_is_refused_as_unreadable(tmp_path, form, offsets):
    table, path = pa.table({"a": ["abcd", "efgh"]}), tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, getattr(pa.ipc, f"new_{form}")(sink, table.schema) as writer:
        writer.write_table(table)
    good, sound = path.read_bytes(), struct.pack("<3i", 0, 4, 8)
    assert [chunk.records for chunk in open_dataset_file(path).chunks()] == [2]
    assert good.count(sound) == 1
    path.write_bytes(good.replace(sound, struct.pack("<3i", *offsets)))

    with pytest.raises(InvalidRequest) as caught:
        list(open_dataset_file(path).chunks())
    assert caught.value.violations[0].field == "file"


def test_parquet_of_large_records_is_read_a_few_at_a_time(tmp_path):
    table = pa.table({"a": [bytes([number]) * MIB for number in range(48)]})
    parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd", write_batch_size=1)
    del table
    file, before, most, records = open_dataset_file(tmp_path / "a.parquet"), pa.total_allocated_bytes(), 0, 0
    for chunk in file.chunks():
        most, records = max(most, pa.total_allocated_bytes() - before), records + chunk.records
    assert records == 48
    assert most < 16 * MIB
