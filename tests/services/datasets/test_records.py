"""Schema check: each refusal names the record, and has a twin that passes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.client.arrow_batches import ArrowBatches
from casemate.errors import InvalidRequest, Reason
from casemate.signing.statements import Column
from services.datasets.records import join_records, require_schema, split_records

SCHEMA = (
    Column(name="label", type="text"),
    Column(name="count", type="integer", minimum=0, maximum=16),
    Column(name="weight", type="number"),
)


def _violation(records: list[bytes], encoding: str, first_ordinal: int = 0) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        require_schema(records, encoding=encoding, schema=SCHEMA, first_ordinal=first_ordinal)
    assert caught.value.reason is Reason.RECORD_INVALID
    assert caught.value.__cause__ is None
    (violation,) = caught.value.violations
    return violation.field, violation.description


@pytest.mark.parametrize(
    "record",
    [
        b"seven,7,0.5",
        b",0,-1e-3",
        b'"a ""quoted"", text",16,.5',
        "sieben – ü,7,7".encode(),
    ],
)
def test_a_csv_record_that_fits_the_schema_passes(record):
    require_schema([record], encoding="csv", schema=SCHEMA, first_ordinal=0)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (b"seven,7", "records[0]"),
        (b"seven,7,0.5,extra", "records[0]"),
        (b"", "records[0]"),
        (b'"seven,7,0.5', "records[0]"),
        (b'"seven"x,7,0.5', "records[0]"),
        (b"seven,7,0.5\r", "records[0]"),
        (b"sev\x00en,7,0.5", "records[0]"),
        (b"\xff,7,0.5", "records[0]"),
        (b"seven,17,0.5", "records[0].count"),
        (b"seven,-1,0.5", "records[0].count"),
        (b"seven,7.0,0.5", "records[0].count"),
        (b"seven, 7,0.5", "records[0].count"),
        ("seven,\u0667,0.5".encode(), "records[0].count"),
        (b"seven,99999999999999999999,0.5", "records[0].count"),
        (b"seven,7,nan", "records[0].weight"),
        (b"seven,7,1e999", "records[0].weight"),
        (b"seven,7,", "records[0].weight"),
    ],
)
def test_a_csv_record_that_does_not_fit_is_refused_by_name(record, field):
    assert _violation([record], "csv")[0] == field


@pytest.mark.parametrize(
    "record",
    [
        b'{"label":"seven","count":7,"weight":0.5}',
        b'{"weight":7,"count":7,"label":""}',
    ],
)
def test_a_json_record_that_fits_the_schema_passes(record):
    require_schema([record], encoding="jsonl", schema=SCHEMA, first_ordinal=0)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (b"", "records[0]"),
        (b"[]", "records[0]"),
        (b'{"label":"seven","count":7}', "records[0]"),
        (b'{"label":"seven","count":7,"weight":0.5,"more":1}', "records[0]"),
        (b'{"label":"seven","count":7,"weight":0.5,"count":7}', "records[0]"),
        (b'{"label":"seven","count":7,"weight":NaN}', "records[0]"),
        (b'{"label":"seven","count":7,"weight":0.5}{}', "records[0]"),
        (b"[" * 100_000, "records[0]"),
        (b'{"label":"seven","weight":1,"count":' + b"9" * 5000 + b"}", "records[0]"),
        (b'{"label":7,"count":7,"weight":0.5}', "records[0].label"),
        (b'{"label":"seven","count":true,"weight":0.5}', "records[0].count"),
        (b'{"label":"seven","count":7.0,"weight":0.5}', "records[0].count"),
        (b'{"label":"seven","count":17,"weight":0.5}', "records[0].count"),
        (b'{"label":"seven","count":7,"weight":null}', "records[0].weight"),
        (b'{"label":"seven","count":7,"weight":1e999}', "records[0].weight"),
    ],
)
def test_a_json_record_that_does_not_fit_is_refused_by_name(record, field):
    assert _violation([record], "jsonl")[0] == field


def test_the_first_bad_records_are_named_by_their_numbers_within_the_version():
    records = [b"a,1,1", b"b,2,2", b"c,seventeen,3", b"d", *[b"e"] * 10]

    with pytest.raises(InvalidRequest) as caught:
        require_schema(records, encoding="csv", schema=SCHEMA, first_ordinal=1000)

    named = [violation.field for violation in caught.value.violations]
    assert named == ["records[1002].count", "records[1003]", "records[1004]", "records[1005]", "records[1006]"]


def test_what_a_record_holds_never_reaches_the_error():
    with pytest.raises(InvalidRequest) as caught:
        require_schema([b'{"label":"CANARY"'], encoding="jsonl", schema=SCHEMA, first_ordinal=0)

    assert "CANARY" not in repr(caught.value)
    assert "CANARY" not in repr(caught.value.violations)
    assert caught.value.__suppress_context__


def test_a_chunk_must_end_at_a_record_boundary():
    assert split_records(b"a\nb\n", field="chunks[0]") == [b"a", b"b"]
    for data in (b"a\nb", b""):
        with pytest.raises(InvalidRequest) as caught:
            split_records(data, field="chunks[0]")
        assert caught.value.reason is Reason.RECORD_INVALID


@given(st.lists(st.binary(max_size=20).filter(lambda record: b"\n" not in record), min_size=1))
def test_joining_gives_back_what_was_split(records):
    assert split_records(join_records(records), field="") == records


def _read(record: bytes, encoding: str, column: Column) -> object:
    """What our client makes of a record that the service takes."""
    require_schema([record], encoding=encoding, schema=(column,), first_ordinal=0)
    return ArrowBatches((column,), encoding=encoding)([record]).to_pydict()["a"][0]


VECTOR = Column(name="a", type="vector")
TIME = Column(name="a", type="timestamp")
TEXT = Column(name="a", type="text", nullable=True)


@pytest.mark.parametrize(
    ("record", "encoding", "column", "value"),
    [
        (b'{"a":[9007199254740993]}', "jsonl", VECTOR, [2.0**53]),
        (b'{"a":[1%s]}' % (b"0" * 30), "jsonl", VECTOR, [1e30]),
        (b'{"a":"2026-01-01t00:00:00z"}', "jsonl", TIME, datetime(2026, 1, 1, tzinfo=UTC)),
        (b"2026-01-01t00:00:00z", "csv", TIME, datetime(2026, 1, 1, tzinfo=UTC)),
        (b'{"a":"0001-01-01T00:00:00-23:59"}', "jsonl", TIME, datetime(1, 1, 1, 23, 59, tzinfo=UTC)),
        (b"9999-12-31T23:59:59+23:59", "csv", TIME, datetime(9999, 12, 31, 0, 0, 59, tzinfo=UTC)),
        (b"x" * 200_000, "csv", TEXT, "x" * 200_000),
        (b'"%s"' % (b"x" * 200_000), "csv", TEXT, "x" * 200_000),
        (b'"a\nb""c"', "csv", TEXT, 'a\nb"c'),
        (b'""', "csv", TEXT, ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_service_takes_our_client_reads(record, encoding, column, value):
    assert _read(record, encoding, column) == value


def test_nothing_between_two_commas_is_no_value_and_quotes_around_nothing_are_an_empty_text():
    columns = (TEXT, Column(name="b", type="text"), Column(name="c", type="integer", nullable=True))
    require_schema([b",,", b'"","",1'], encoding="csv", schema=columns, first_ordinal=0)
    found = ArrowBatches(columns, encoding="csv")([b",,", b'"","",1']).to_pydict()
    assert found == {"a": [None, ""], "b": ["", ""], "c": [None, 1]}


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
@pytest.mark.parametrize("encoding", ["csv", "jsonl"])
def test_a_moment_outside_the_years_that_a_reader_can_hold_is_refused_by_name(text, encoding):
    record = text.encode() if encoding == "csv" else b'{"a":"%s"}' % text.encode()
    with pytest.raises(InvalidRequest) as caught:
        require_schema([record], encoding=encoding, schema=(TIME,), first_ordinal=0)
    assert caught.value.violations[0].field == "records[0].a"
