"""CSV and JSON Lines by their letters: quotes, line ends, nulls, names that come twice, numbers that lose digits."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidRequest, Reason
from casemate.signing.columns import Column
from casemate.signing.framing import MAXIMUM_RECORD_BYTES
from services.datasets.records import join_records, require_schema, split_records

WIDE = (
    Column(name="a", type="text", nullable=True, categories=("x", "")),
    Column(name="b", type="boolean"),
    Column(name="c", type="bytes", nullable=True),
    Column(name="d", type="timestamp"),
    Column(name="e", type="json", nullable=True),
    Column(name="f", type="integer", nullable=True),
)
TEXTS = (Column(name="a", type="text"), Column(name="b", type="text"))
VECTOR = (Column(name="v", type="vector", minimum=0), Column(name="j", type="json"))


def refusals(record: bytes, encoding: str, schema) -> str:
    with pytest.raises(InvalidRequest) as caught:
        require_schema([record], encoding=encoding, schema=schema, first_ordinal=7)
    assert caught.value.reason is Reason.RECORD_INVALID
    return caught.value.violations[0].field


@pytest.mark.parametrize(
    "record",
    [
        b'x,true,YWI=,2026-11-23T10:00:00Z,"{""k"":[1,2]}",5',
        b",false,,2026-11-23T10:00:00.5+01:00,,",
        b'"",true,"",2026-11-23T10:00:00Z,null,-9223372036854775808',
    ],
)
def test_csv_holds_every_type_and_nothing_between_commas_is_null(record):
    require_schema([record], encoding="csv", schema=WIDE, first_ordinal=0)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (b"y,true,,2026-11-23T10:00:00Z,,", "records[7].a"),
        (b",,,2026-11-23T10:00:00Z,,", "records[7].b"),
        (b",True,,2026-11-23T10:00:00Z,,", "records[7].b"),
        (b",true,YWI,2026-11-23T10:00:00Z,,", "records[7].c"),
        (b",true,,2026-11-23,,", "records[7].d"),
        (b",true,,2026-11-23T10:00:00,,", "records[7].d"),
        (b",true,,,,", "records[7].d"),
        (b",true,,2026-11-23T10:00:00Z,{,", "records[7].e"),
        (b',true,,2026-11-23T10:00:00Z,"{""k"":1,""k"":2}",', "records[7].e"),
        (b",true,,2026-11-23T10:00:00Z,NaN,", "records[7].e"),
        (b',true,,2026-11-23T10:00:00Z,,""', "records[7].f"),
        (b",true,,2026-11-23T10:00:00Z,,9223372036854775808", "records[7].f"),
    ],
)
def test_csv_that_does_not_fit_a_type_is_refused_by_name(record, field):
    assert refusals(record, "csv", WIDE) == field


@pytest.mark.parametrize(
    ("record", "good"),
    [
        (b'"a""b",c', True),
        (b'"a,b","c\nd"', True),
        (b'"a\r\nb",c', True),
        (b'"",""', True),
        (b'a"b,c', False),
        (b'"a"b,c', False),
        (b'"a,b', False),
        (b'"a""b,c', False),
        (b"a,c\r", False),
        (b'"a",c\r', False),
        (b"a\rb,c", False),
        (b'"a\x00",c', False),
    ],
)
def test_quotes_and_line_ends_are_where_rfc_4180_has_them(record, good):
    if good:
        require_schema([record], encoding="csv", schema=TEXTS, first_ordinal=0)
    else:
        assert refusals(record, "csv", TEXTS) == "records[7]"


def test_a_formula_is_a_text_like_any_other():
    """What a spreadsheet would do with it is the spreadsheet's: what was signed is kept to the byte."""
    record = b'=HYPERLINK("http://example.org"),@SUM(1)'
    assert refusals(record, "csv", TEXTS) == "records[7]"
    quoted = b'"=HYPERLINK(""http://example.org"")",@SUM(1)'
    require_schema([quoted], encoding="csv", schema=TEXTS, first_ordinal=0)


def test_a_line_feed_inside_quotes_ends_no_record():
    data = b'1,"two\nlines"\n2,"a ""quoted\n"" text"\n3,plain\n'
    records = split_records(data, field="", encoding="csv")
    assert records == [b'1,"two\nlines"', b'2,"a ""quoted\n"" text"', b"3,plain"]
    assert join_records(records, encoding="csv") == data
    assert split_records(b'1,"open\n2,x\n', field="", encoding="csv") == [b'1,"open\n2,x']


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
def test_csv_records_come_back_as_they_were_written(rows):
    records = [",".join('"' + cell.replace('"', '""') + '"' for cell in row).encode("utf-8", "replace") for row in rows]
    data = b"".join(record + b"\n" for record in records)
    assert split_records(data, field="", encoding="csv") == records


def line(**values) -> bytes:
    return json.dumps(
        {"a": None, "b": True, "c": None, "d": "2026-11-23T10:00:00Z", "e": None, "f": None, **values}
    ).encode()


@pytest.mark.parametrize(
    "record",
    [
        line(),
        line(a="x", c="YWI=", e={"k": [1, {"m": 'q"\\'}]}, f=5),
        b'{"b":false,"d":"2026-11-23T10:00:00+01:00"}',
        b'{"b":false,"\\u0064":"2026-11-23T10:00:00+01:00","a":"\\u0078"}',
        line(e='a "text" \\'),
    ],
)
def test_json_holds_every_type_and_a_nullable_column_may_be_left_out(record):
    require_schema([record], encoding="jsonl", schema=WIDE, first_ordinal=0)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (line(a="y"), "records[7].a"),
        (line(b=None), "records[7].b"),
        (line(b=1), "records[7].b"),
        (line(c="YWI"), "records[7].c"),
        (line(d="2026-11-23"), "records[7].d"),
        (line(e=[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]), "records[7].e"),
        (line(f=2**63), "records[7].f"),
        (line(f=1.0), "records[7].f"),
        (line(more=1), "records[7]"),
        (b'{"b":true}', "records[7]"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","e":{"k":1,"k":2}}', "records[7]"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","b":true}', "records[7]"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","a":null,"a":null}', "records[7]"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","\\u0062":true}', "records[7]"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","e":"\\ud800"}', "records[7].e"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","e":{"\\ud800":1}}', "records[7].e"),
        (b'{"b":true,"d":"2026-11-23T10:00:00Z","e":1e999}', "records[7].e"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_name(record, field):
    assert refusals(record, "jsonl", WIDE) == field


def test_a_vector_is_a_list_of_finite_numbers_within_bounds():
    require_schema([b'{"v":[],"j":0}', b'{"v":[0,1.5],"j":[null]}'], encoding="jsonl", schema=VECTOR, first_ordinal=0)
    for wrong in (b"[-1]", b"[null]", b'["1"]', b"[true]", b"1", b"[[1]]", b"null"):
        assert refusals(b'{"v":%b,"j":0}' % wrong, "jsonl", VECTOR) == "records[7].v"
    assert refusals(b'{"v":[1],"j":null}', "jsonl", VECTOR) == "records[7].j"


@given(
    st.dictionaries(st.sampled_from("ab"), st.text(max_size=8), min_size=2),
    st.booleans(),
    st.sampled_from("ab"),
    st.text(max_size=3),
)
def test_a_name_that_comes_twice_is_found_whatever_the_texts_hold(values, ascii_only, name, again):
    """Quotes are counted, so texts full of quotes and backslashes must not hide one, nor make one up."""
    once = json.dumps(values, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    twice = once[:-1] + b', "%b": %b}' % (name.encode(), json.dumps(again).encode())
    try:
        require_schema([once], encoding="jsonl", schema=TEXTS, first_ordinal=0)
    except InvalidRequest:
        assert any("\ud800" <= character <= "\udfff" for value in values.values() for character in value)
    with pytest.raises(InvalidRequest):
        require_schema([twice], encoding="jsonl", schema=TEXTS, first_ordinal=0)


def test_a_record_of_text_has_at_most_a_mebibyte():
    fits = b"x" * (MAXIMUM_RECORD_BYTES - 3) + b",y"
    require_schema([fits], encoding="csv", schema=TEXTS, first_ordinal=0)
    assert refusals(b"x" + fits, "csv", TEXTS) == "records[7]"
    frame = b'{"a":"","b":"%b"}'
    fits = frame % (b"x" * (MAXIMUM_RECORD_BYTES - len(frame) + 1))
    require_schema([fits], encoding="jsonl", schema=TEXTS, first_ordinal=0)
    assert refusals(fits + b" ", "jsonl", TEXTS) == "records[7]"


def test_four_thousand_columns_are_checked():
    schema = [Column(name=f"c{number}", type="integer") for number in range(4096)]
    row = dict.fromkeys((column.name for column in schema), 1)
    require_schema([json.dumps(row).encode()], encoding="jsonl", schema=schema, first_ordinal=0)
    require_schema([b",".join([b"1"] * 4096)], encoding="csv", schema=schema, first_ordinal=0)
    assert refusals(b",".join([b"1"] * 4097), "csv", schema) == "records[7]"


@pytest.mark.parametrize("digits", [b"1", b".1", b"1e1", b"1."])
def test_a_megabyte_of_digits_is_a_number_or_none_and_holds_nobody_up(digits):
    """Tried again at every split, it took the interpreter from all tenants for hours: the limit of a test ends that."""
    schema = (Column(name="a", type="number"), Column(name="b", type="text"))
    long = digits.ljust(MAXIMUM_RECORD_BYTES - 4, b"0")
    assert refusals(long + b"x,", "csv", schema) == "records[7].a"
    fits = b"0" * 1000 + digits.replace(b"e1", b"e-1")
    require_schema([fits + b","], encoding="csv", schema=schema, first_ordinal=0)


@pytest.mark.parametrize("field", [b"", b'""'])
def test_a_megabyte_of_commas_is_refused_before_its_fields_are_made(field):
    record = (field + b",").join([b""] * (MAXIMUM_RECORD_BYTES // (len(field) + 1)))
    tracemalloc.start()
    try:
        assert refusals(record, "csv", TEXTS) == "records[7]"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    require_schema([field + b"," + field], encoding="csv", schema=TEXTS, first_ordinal=0)
