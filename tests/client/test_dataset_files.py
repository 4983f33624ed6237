"""Files as datasets: what is read off them, what is refused and named, and that any chunking gives the same rows."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from casemate.client.arrow_files import cut_batches
from casemate.client.csv_files import csv_chunks
from casemate.client.dataset_files import load_declared, open_dataset_file, read_as_signed
from casemate.client.text_files import jsonl_chunks
from casemate.errors import ConfigurationError, InvalidRequest, Reason
from casemate.signing.arrow_form import arrow_stream
from casemate.signing.columns import Column
from casemate.signing.framing import MAXIMUM_LONE_ROW_BYTES, MAXIMUM_RECORD_BYTES, MAXIMUM_ROW_BYTES, join_rows
from services.datasets.records import record_check, split_records


def written(tmp_path, name: str, data: bytes):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def refused(path, **keywords) -> tuple[str, str]:
    """Field and description of the refusal of a file, be it opened or cut."""
    with pytest.raises(InvalidRequest) as caught:
        list(open_dataset_file(path, **keywords).chunks())
    assert caught.value.reason in {Reason.RECORD_INVALID, Reason.MANIFEST_INVALID}
    return caught.value.violations[0].field, caught.value.violations[0].description


def types(file) -> dict[str, str]:
    return {column.name: column.type + ("?" if column.nullable else "") for column in file.schema}


def data_of(file) -> bytes:
    return b"".join(chunk.data for chunk in file.chunks())


def table_of(file) -> pa.Table:
    rows = [row for chunk in file.chunks() for row in split_records(chunk.data, field="", encoding="arrow")]
    return pa.ipc.open_stream(b"".join(arrow_stream(rows, file.schema))).read_all()


def test_csv_of_any_platform_becomes_records_that_end_with_a_line_feed(tmp_path):
    data = b'\xef\xbb\xbfid,"text, with ""quotes""",ok\r\n1,"two\r\nlines",true\r\n\r\n2,"a ""b"", c",false'
    renamed = data.replace(b'"text, with ""quotes"""', b"text")

    file = open_dataset_file(written(tmp_path, "a.csv", renamed))

    assert types(file) == {"id": "integer", "text": "text", "ok": "boolean"}
    assert data_of(file) == b'1,"two\r\nlines",true\n2,"a ""b"", c",false\n'
    assert sum(chunk.rows for chunk in file.chunks()) == 2
    assert refused(written(tmp_path, "b.csv", data))[0] == "columns[1]"


@pytest.mark.parametrize(("end", "kind"), [("x", "text"), (".5", "number")])
def test_a_megabyte_of_digits_is_a_number_or_a_text_and_holds_nobody_up(tmp_path, end, kind):
    path = written(tmp_path, "a.csv", ("a\n" + "1" * (MAXIMUM_RECORD_BYTES - 8) + end + "\n").encode())
    assert types(open_dataset_file(path)) == {"a": kind}


def test_csv_columns_have_the_narrowest_type_that_all_records_fit(tmp_path):
    header = "a,b,c,d,e,f"
    lines = "1,1.5,x,2026-11-23T10:00:00Z,,true", "-7,2,,2026-11-23T10:00:00+01:00,,no", "9,,y,,,"

    file = open_dataset_file(written(tmp_path, "a.csv", "\n".join([header, *lines]).encode()))

    assert types(file) == {
        "a": "integer",
        "b": "number?",
        "c": "text",
        "d": "timestamp?",
        "e": "text",
        "f": "text",
    }


def test_json_lines_have_types_nulls_and_shapes_read_off_them(tmp_path):
    records = (
        {"a": 1, "b": 1, "c": "x", "d": True, "e": [1, 2.5], "f": {"x": [1]}, "g": None},
        {"a": 2, "b": 1.5, "c": None, "d": False, "e": [], "f": "mixed", "h": 1},
    )

    file = open_dataset_file(written(tmp_path, "a.jsonl", "\r\n".join(map(json.dumps, records)).encode()))

    assert types(file) == {
        "a": "integer",
        "b": "number",
        "c": "text?",
        "d": "boolean",
        "e": "vector",
        "f": "json",
        "g": "text?",
        "h": "integer?",
    }
    assert [json.loads(line) for line in data_of(file).splitlines()] == list(records)


def test_parquet_and_arrow_hold_the_same_rows_in_widths_of_their_own(tmp_path):
    table = pa.table(
        {
            "small": pa.array([1, 2, 3], pa.uint8()),
            "number": pa.array([0.5, None, 2], pa.float32()),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "image": pa.array([b"\x00\xff", b"", b"x"], pa.large_binary()),
            "day": pa.array([datetime(2026, 1, day).date() for day in (1, 2, 3)]),  # noqa: DTZ001
            "when": pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)], pa.timestamp("ms", "UTC")),
            "vector": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
            "nested": pa.array([{"x": [1]}, {"x": []}, None]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    files = [open_dataset_file(tmp_path / name) for name in ("a.parquet", "a.arrow", "b.arrow")]

    assert files[0].schema == files[1].schema == files[2].schema
    assert data_of(files[0]) == data_of(files[1]) == data_of(files[2])
    assert {column.name: column.storage for column in files[0].schema if column.storage} == {
        "small": "uint8",
        "number": "float32",
        "vector": "float32",
    }
    read = table_of(files[0])
    read.validate(full=True)
    for name in ("small", "number", "kind", "image", "when", "vector"):
        assert read[name].to_pylist() == table[name].to_pylist()
    assert read["day"].to_pylist()[0] == datetime(2026, 1, 1, tzinfo=UTC)
    assert read["nested"].to_pylist() == ['{"x":[1]}', '{"x":[]}', None]


def test_a_column_of_several_types_is_named_with_the_first_record_that_differs(tmp_path):
    lines = "1,1,1,true,2026-11-23T10:00:00Z", "2,1.5,true,1,x", "3,x,y,,", "n/a,z,false,true,y"
    file = open_dataset_file(written(tmp_path, "a.csv", "\n".join(["a,b,c,d,e", *lines]).encode()))
    assert types(file) == dict.fromkeys("abcde", "text")
    assert sorted(file.remarks) == [
        "columns.a is taken as text: records[3] is not integer, as those before it are",
        "columns.b is taken as text: records[2] is not number, as those before it are",
        "columns.c is taken as text: records[1] is not integer, as those before it are",
        "columns.d is taken as text: records[1] is not boolean, as those before it are",
        "columns.e is taken as text: records[1] is not timestamp, as those before it are",
    ]
    records = {"a": 1, "b": 1, "c": [1]}, {"a": "x", "b": 2.5, "c": ["x"]}, {"a": {}, "b": None, "c": 1}
    file = open_dataset_file(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)).encode()))
    assert types(file) == {"a": "json", "b": "number?", "c": "json"}
    assert sorted(file.remarks) == [
        "columns.a is taken as json: records[1] is not integer, as those before it are",
        "columns.c is taken as json: records[1] is not vector, as those before it are",
    ]
    declared = [{"name": "a", "type": "json"}, {"name": "c", "type": "json"}]
    assert open_dataset_file(tmp_path / "a.jsonl", declared=declared).remarks == ()
    plain = open_dataset_file(written(tmp_path, "b.csv", b"a,b,c\n1,x,\n2.5,1,true\n"))
    assert (types(plain), plain.remarks) == ({"a": "number", "b": "text", "c": "boolean?"}, ())


def test_quotes_around_nothing_are_a_text_and_no_missing_number(tmp_path):
    quoted = open_dataset_file(written(tmp_path, "a.csv", b'a,b\n"1","2"\n"3",""\n'))
    assert types(quoted) == {"a": "integer", "b": "text"}
    assert quoted.remarks == ("columns.b is taken as text: records[1] is not integer, as those before it are",)
    for file in (quoted, open_dataset_file(written(tmp_path, "b.csv", b'a,b\n"1","2"\n"3",\n'))):
        checked = record_check("csv", file.schema)
        assert checked.require(split_records(data_of(file), field="", encoding="csv"), first_record=0) == 2
    assert types(open_dataset_file(tmp_path / "b.csv")) == {"a": "integer", "b": "integer?"}


def test_what_is_declared_takes_the_place_of_what_was_read(tmp_path):
    path = written(tmp_path, "a.csv", b"id,code\n1,007\n")
    assert types(open_dataset_file(path)) == {"id": "integer", "code": "integer"}
    declaration = written(tmp_path, "schema.json", b'[{"name": "code", "type": "text", "categories": ["007"]}]')

    file = open_dataset_file(path, declared=load_declared(declaration))

    assert file.schema[1] == Column(name="code", type="text", categories=("007",))
    assert refused(path, declared=[{"name": "cod", "type": "text"}]) == ("schema.cod", "is no column of the file")
    assert refused(path, declared=[{"name": "code", "type": "list"}])[0] == "schema.type"
    assert refused(path, declared=[{"name": "code", "kind": "text"}])[0] == "schema"
    with pytest.raises(ConfigurationError):
        load_declared(written(tmp_path, "bad.json", b'{"name": "code"}'))


def test_a_type_that_none_of_ours_holds_is_named_and_can_be_declared(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1], "price": pa.array([Decimal("1.50")])}), path)

    assert refused(path)[0] == "columns.price"
    file = open_dataset_file(path, declared=[{"name": "price", "type": "text", "nullable": True}])
    assert table_of(file)["price"].to_pylist() == ["1.50"]
    file = open_dataset_file(path, declared=[{"name": "id", "storage": "int8"}, {"name": "price", "type": "number"}])
    assert table_of(file).schema.field("id").type == pa.int8()
    parquet.write_table(pa.table({"id": [2**40]}), path)
    assert refused(path, declared=[{"name": "id", "storage": "int8"}]) == (
        "columns.id",
        "cannot be written as integer",
    )


@pytest.mark.parametrize(
    ("name", "data", "field"),
    [
        ("a.csv", b"", "file"),
        ("a.csv", b"\n1,2\n", "file"),
        ("a.csv", b"a,b\n", "file"),
        ("a.csv", b"a,a\n1,2\n", "columns.a"),
        ("a.csv", b"a,b c\n1,2\n", "columns[1]"),
        ("a.csv", b"a,b\n1,2\n1\n", "records[1]"),
        ("a.csv", b'a,b\n1,2\n1,x"y\n', "records[1]"),
        ("a.csv", b'a,b\n1,"open\n1,2\n', "records[0]"),
        ("a.csv", b"a,b\n1,\xff\n", "records[0]"),
        ("a.csv", b"a\n" + b"x" * MAXIMUM_RECORD_BYTES + b"\n", "records[0]"),
        ("a.jsonl", b"", "file"),
        ("a.jsonl", b"\n\n", "file"),
        ("a.jsonl", b'{"a":1}\n[1]\n', "records[1]"),
        ("a.jsonl", b'{"a":1}\n{"a":', "records[1]"),
        ("a.jsonl", b'{"a b":1}\n', "columns[0]"),
        ("a.jsonl", b'{"a":1}\n{"a":"' + b"x" * MAXIMUM_RECORD_BYTES + b'"}\n', "records[1]"),
        ("a.parquet", b"PAR1 not really PAR1", "file"),
        ("a.arrow", b"ARROW1 not really", "file"),
        ("a.arrow", b"nothing of the kind", "file"),
    ],
)
def test_a_file_that_is_no_dataset_is_refused_by_what_is_wrong_with_it(tmp_path, name, data, field):
    assert refused(written(tmp_path, name, data))[0] == field


def test_a_parquet_file_with_a_name_twice_or_no_record_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twice, path)
    assert refused(path) == ("columns.a", "is there twice")
    parquet.write_table(pa.table({"a": pa.array([], pa.int64())}), path)
    assert refused(path) == ("file", "holds no record")
    parquet.write_table(pa.table({"a": pa.array([1], pa.int64())}), path)
    assert open_dataset_file(path).schema


def test_an_arrow_stream_that_was_cut_is_refused_or_remarked_on(tmp_path):
    table = pa.table({"a": list(range(300))})
    ends, path = [], tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=100):
            writer.write_batch(batch)
            ends.append(sink.tell())
    whole = path.read_bytes()
    assert (table_of(open_dataset_file(path)).num_rows, open_dataset_file(path).remarks) == (300, ())

    cut = open_dataset_file(written(tmp_path, "b.arrow", whole[: ends[1]]))
    assert table_of(cut).num_rows == 200
    assert cut.remarks == ("file has no end-of-stream marker: if it was cut, records are missing",)
    for size in (ends[1] - 8, ends[1] + 4, ends[1] + 100, ends[0] - 300):
        assert refused(written(tmp_path, "c.arrow", whole[:size]))[0] == "file"


def test_another_ending_is_no_dataset(tmp_path):
    with pytest.raises(ConfigurationError):
        open_dataset_file(written(tmp_path, "a.xlsx", b"x"))


def test_a_file_is_read_again_as_it_was_signed(tmp_path):
    for name, data in (("a.csv", b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n'), ("a.jsonl", b'{"a":1}\r\n')):
        file = open_dataset_file(written(tmp_path, name, data))
        manifest = type("Signed", (), {"format": file.format, "schema": file.schema})
        assert b"".join(read_as_signed(tmp_path / name, manifest)) == data_of(file)
    parquet.write_table(pa.table({"a": list(range(3000))}), tmp_path / "a.parquet")
    file = open_dataset_file(tmp_path / "a.parquet")
    manifest = type("Signed", (), {"format": file.format, "schema": file.schema})
    assert b"".join(read_as_signed(tmp_path / "a.parquet", manifest)) == data_of(file)


cells = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=12)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=30), chunk_bytes=st.integers(1, 200))
def test_any_chunking_of_csv_gives_the_rows_that_were_written(tmp_path_factory, rows, chunk_bytes):
    path = tmp_path_factory.getbasetemp() / "chunked.csv"
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    path.write_bytes(out.getvalue().encode())

    chunks = list(csv_chunks(path, chunk_bytes=chunk_bytes))

    records = []
    for chunk in chunks:
        split = split_records(chunk.data, field="", encoding="csv")
        assert len(split) == chunk.rows
        assert join_rows(split, encoding="csv") == chunk.data
        records += split
    read = [next(csv.reader(io.StringIO(record.decode(), newline=""), strict=True)) for record in records]
    assert read == [list(row) for row in rows]


@settings(deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"a": cells, "b": st.integers()}), min_size=1, max_size=30),
    chunk_bytes=st.integers(1, 200),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_any_chunking_of_json_lines_gives_the_rows_that_were_written(tmp_path_factory, rows, chunk_bytes, end):
    path = tmp_path_factory.getbasetemp() / "chunked.jsonl"
    path.write_bytes(end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())

    chunks = list(jsonl_chunks(path, chunk_bytes=chunk_bytes))

    records = [record for chunk in chunks for record in split_records(chunk.data, field="", encoding="jsonl")]
    assert sum(chunk.rows for chunk in chunks) == len(records)
    assert [json.loads(record) for record in records] == rows


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    cuts=st.integers(1, 40),
    chunk_bytes=st.integers(1, 100_000),
)
def test_any_chunking_of_arrow_gives_the_rows_that_were_written(sizes, cuts, chunk_bytes):
    columns = (Column(name="a", type="bytes"), Column(name="b", type="integer", nullable=True))
    table = pa.table({"a": [bytes(size) for size in sizes], "b": [s if s % 3 else None for s in sizes]})

    chunks = list(cut_batches(iter(table.to_batches(max_chunksize=cuts)), columns, chunk_bytes=chunk_bytes))

    rows = [split_records(chunk.data, field="", encoding="arrow") for chunk in chunks]
    assert [len(some) for some in rows] == [chunk.rows for chunk in chunks]
    read = pa.ipc.open_stream(b"".join(arrow_stream([row for some in rows for row in some], columns))).read_all()
    assert read.to_pydict() == table.to_pydict()
    assert sum(chunk.records for chunk in chunks) == len(sizes)


def test_rows_of_arrow_stay_small_and_a_large_record_stands_alone():
    columns = (Column(name="a", type="bytes"),)
    values = [bytes(100)] * 3000 + [bytes(3 << 20)] + [bytes(60_000)] * 10
    batches = pa.table({"a": values}).to_batches()

    chunks = list(cut_batches(iter(batches), columns, chunk_bytes=1 << 20))

    rows = [row for chunk in chunks for row in split_records(chunk.data, field="", encoding="arrow")]
    assert max(sorted(map(len, rows))[:-1]) <= MAXIMUM_ROW_BYTES
    assert max(map(len, rows)) > 3 << 20
    too_large = pa.table({"a": [b"x", bytes(MAXIMUM_LONE_ROW_BYTES)]}).to_batches()
    with pytest.raises(InvalidRequest) as caught:
        list(cut_batches(iter(too_large), columns, chunk_bytes=1 << 20))
    assert caught.value.violations[0].field == "records[1]"


@pytest.mark.parametrize("width", [3, 40, 300, 3000], ids="{} bytes a line".format)
@pytest.mark.parametrize("odd", ["", "\n", "\r\n"], ids=["plain", "an empty line", "an empty line of CRLF"])
def test_lines_are_cut_the_same_whether_they_are_short_or_long(tmp_path, width, odd):
    lines = ["x" * (width - 1 - number % 2) for number in range(200)]
    text = "".join(line + "\n" + (odd if number == 150 else "") for number, line in enumerate(lines))
    (tmp_path / "lines.jsonl").write_bytes(text.removesuffix("\n").encode())
    chunks = list(jsonl_chunks(tmp_path / "lines.jsonl", chunk_bytes=8192))
    assert b"".join(chunk.data for chunk in chunks).decode() == "\n".join(lines) + "\n"
    assert sum(chunk.rows for chunk in chunks) == len(lines)
    assert all(len(chunk.data) <= 8192 and chunk.data.endswith(b"\n") for chunk in chunks)
