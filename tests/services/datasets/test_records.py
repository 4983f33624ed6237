"""Schema check: each refusal names the record, and has a twin that passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
