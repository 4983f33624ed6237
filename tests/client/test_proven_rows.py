"""Where rows end in signed bytes: one way, whatever the service says."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.client.proven_rows import require_signed_rows
from casemate.errors import StoredDataUnreadable
from casemate.signing.framing import join_rows
from casemate.signing.merkle import leaf_hash
from casemate.signing.statements import ChunkDigest


def chunk_of(rows, encoding: str, *, records: int | None = None) -> ChunkDigest:
    data = join_rows(rows, encoding=encoding)
    return ChunkDigest(leaf_hash=leaf_hash(data), bytes=len(data), rows=len(rows), records=records)


def message(*values: int) -> bytes:
    return pa.record_batch([pa.array(values, pa.int64())], names=["a"]).serialize().to_pybytes()


ONE, TWO = message(1), message(2, 3)


@pytest.mark.parametrize(
    ("signed", "cut", "encoding", "records"),
    [
        ([b'1,"a\nb"', b'2,"c"'], [b'1,"a', b'b"\n2,"c"'], "csv", None),
        ([b'1,"a\nb"', b"2,c", b"3,d"], [b'1,"a\nb"\n2,c', b"3,d"], "csv", None),
        ([b'1,"a\nb"', b"2,c"], [b'1,"a\nb"\n2', b"c"], "csv", None),
        ([b'"\n"', b'"\n"'], [b'"', b'"\n"\n"'], "csv", None),
        ([b'{"a":1}', b'{"a":2}'], [b'{"a":1}\n{"a":2}'], "jsonl", None),
        ([ONE, TWO], [ONE + TWO, b""], "arrow", 3),
        ([ONE, TWO], [b"", ONE + TWO], "arrow", 3),
        ([ONE, TWO], [ONE[:-8], ONE[-8:] + TWO], "arrow", 3),
        ([ONE, TWO], [ONE + TWO[:8], TWO[8:]], "arrow", 3),
    ],
)
def test_the_same_bytes_cut_elsewhere_are_refused(signed, cut, encoding, records):
    chunk = chunk_of(signed, encoding, records=records)
    require_signed_rows(signed, chunk, encoding=encoding)
    with pytest.raises(StoredDataUnreadable):
        require_signed_rows(cut, chunk, encoding=encoding)


@pytest.mark.parametrize("records", [2, 4])
def test_rows_that_hold_more_or_fewer_records_than_were_signed_are_refused(records):
    require_signed_rows([ONE, TWO], chunk_of([ONE, TWO], "arrow", records=3), encoding="arrow")
    with pytest.raises(StoredDataUnreadable, match="other records"):
        require_signed_rows([ONE, TWO], chunk_of([ONE, TWO], "arrow", records=records), encoding="arrow")


def test_a_row_that_no_version_may_hold_is_refused_though_it_was_signed():
    """The supplier's word and the service's are one here: the reader has to have neither."""
    schema = pa.schema([("a", pa.int64())])
    for row in (schema.serialize().to_pybytes(), ONE + TWO, ONE + b"\0" * 8, ONE[4:], b"no message", ONE[:-8]):
        with pytest.raises(StoredDataUnreadable):
            require_signed_rows([row], chunk_of([row], "arrow", records=1), encoding="arrow")
    require_signed_rows([ONE], chunk_of([ONE], "arrow", records=1), encoding="arrow")


def test_a_dictionary_whose_number_would_pass_for_a_count_of_records_is_no_row():
    """The second one of a stream is number 1, where a record batch says how many records it has."""
    kind = pa.dictionary(pa.int8(), pa.utf8())
    schema = pa.schema([pa.field("a", kind), pa.field("b", kind)])
    columns = [pa.array(["x"]).dictionary_encode().cast(kind)] * 2
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    found = [reader.read_next_message() for _ in range(4)]
    assert [each.type for each in found] == ["schema", "dictionary", "dictionary", "record batch"]
    for each in found[:3]:
        row = each.serialize().to_pybytes()
        with pytest.raises(StoredDataUnreadable):
            require_signed_rows([row], chunk_of([row], "arrow", records=1), encoding="arrow")
    row = found[3].serialize().to_pybytes()
    require_signed_rows([row], chunk_of([row], "arrow", records=1), encoding="arrow")


def test_other_bytes_and_another_number_of_rows_are_refused():
    chunk = chunk_of([b"1,a", b"2,b"], "csv")
    require_signed_rows([b"1,a", b"2,b"], chunk, encoding="csv")
    for wrong in ([b"1,a", b"2,c"], [b"1,a"], [b"1,a", b"2,b", b""], []):
        with pytest.raises(StoredDataUnreadable):
            require_signed_rows(wrong, chunk, encoding="csv")


cells = st.text(st.sampled_from('ab",\n'), max_size=6)


@given(rows=st.lists(st.tuples(cells, cells), min_size=2, max_size=6), data=st.data())
def test_of_all_ways_to_cut_csv_at_line_feeds_the_signed_one_passes_alone(rows, data):
    records = [",".join('"' + cell.replace('"', '""') + '"' for cell in row).encode() for row in rows]
    chunk = chunk_of(records, "csv")
    require_signed_rows(records, chunk, encoding="csv")
    lines = b"\n".join(records).split(b"\n")
    ends = data.draw(st.sets(st.integers(1, len(lines) - 1), min_size=len(rows) - 1, max_size=len(rows) - 1))
    places = [0, *sorted(ends), len(lines)]
    other = [b"\n".join(lines[a:b]) for a, b in pairwise(places)]
    if other != records:
        with pytest.raises(StoredDataUnreadable):
            require_signed_rows(other, chunk, encoding="csv")
