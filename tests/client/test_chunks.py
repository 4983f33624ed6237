from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.client.chunks import MAXIMUM_CHUNK_BYTES, cut, digest, records_of
from casemate.errors import InvalidRequest
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_ROWS

records = st.lists(st.binary(min_size=1, max_size=40).filter(lambda record: b"\n" not in record), max_size=60)


@given(records, st.integers(min_value=1, max_value=200))
def test_chunks_hold_every_record_once_in_order_within_the_size(given_records, chunk_bytes):
    chunks = list(cut(given_records, chunk_bytes=chunk_bytes))
    assert b"".join(chunks) == b"".join(record + b"\n" for record in given_records)
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert all(len(chunk) <= chunk_bytes or chunk.count(b"\n") == 1 for chunk in chunks)


@given(records)
def test_digest_counts_rows_and_bytes(given_records):
    digests = digest(cut(given_records, chunk_bytes=64))
    assert sum(each.rows for each in digests) == len(given_records)
    assert sum(each.bytes for each in digests) == sum(len(record) + 1 for record in given_records)


@pytest.mark.parametrize("bad", [b"", b"two\nlines", b"x" * MAXIMUM_CHUNK_BYTES])
def test_record_that_is_no_single_line_is_refused_by_number(bad):
    with pytest.raises(InvalidRequest) as refusal:
        list(cut([b"good", bad]))
    assert refusal.value.violations[0].field == "records[1]"
    assert list(cut([b"good", b"good too"]))


def test_file_is_read_the_same_each_time_without_its_header(tmp_path):
    file = tmp_path / "data.csv"
    file.write_bytes(b"a,b\r\n1,2\r\n\r\n3,4")
    source = records_of(file, skip_header=True)
    assert list(source()) == [b"1,2", b"3,4"]
    assert list(source()) == [b"1,2", b"3,4"]


def test_a_chunk_has_no_more_records_than_a_manifest_takes():
    chunks = list(cut([b"x"] * (MAXIMUM_CHUNK_ROWS + 1)))
    assert [each.rows for each in digest(chunks)] == [MAXIMUM_CHUNK_ROWS, 1]
