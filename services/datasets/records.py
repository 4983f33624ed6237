"""Records and their schema: splits a chunk, checks each record, names the first bad one.

CSV is one record a line, RFC 4180 quoting, no header line and no line feed
inside quotes: a line is a record. JSON Lines is one object a line, with exactly
the columns of the schema. Texts in errors are ours; a record's content never
leaves this module in one.
"""

from __future__ import annotations

import csv
import json
import math
import re
from typing import TYPE_CHECKING, NoReturn

from casemate.errors import FieldViolation, InvalidRequest, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.signing.statements import Column

_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER_LIMIT = 2**63
"""Integers are those of 64 bits: what every reader can hold without losing digits."""

_TYPE_TEXTS = {
    "integer": "not an integer of 64 bits",
    "number": "not a finite number",
    "text": "not a text",
}
_OUT_OF_BOUNDS = "outside the column's minimum and maximum"


class _BadRecord(ValueError):
    """A record that does not fit; carries constant text, and the column if one is to blame."""

    def __init__(self, text: str, column: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.column = column


def split_records(data: bytes, *, field: str) -> list[bytes]:
    """The records of a chunk, each without its line feed.

    Raises:
        InvalidRequest: RECORD_INVALID, the chunk does not end at a record boundary.
    """
    if not data.endswith(b"\n"):
        raise InvalidRequest(
            "the chunk does not end at a record boundary",
            reason=Reason.RECORD_INVALID,
            violations=(FieldViolation(field, "does not end with a line feed"),),
        )
    return data[:-1].split(b"\n")


def join_records(records: Sequence[bytes]) -> bytes:
    """The chunk that `split_records` came from."""
    return b"".join(record + b"\n" for record in records)


def require_schema(records: Sequence[bytes], *, encoding: str, schema: Sequence[Column], first_ordinal: int) -> None:
    """Checks every record against the columns.

    Args:
        records: without line feeds.
        encoding: the manifest's format, `csv` or `jsonl`.
        schema: the manifest's columns.
        first_ordinal: number of the first record within the version, from 0.

    Raises:
        InvalidRequest: RECORD_INVALID, naming the first bad record as `records[<number>]`.
    """
    parse = {"csv": _csv_values, "jsonl": _json_values}[encoding]
    checks = [(column, _text_check(column) if encoding == "csv" else _value_check(column)) for column in schema]
    names = frozenset(column.name for column in schema)
    for ordinal, record in enumerate(records, first_ordinal):
        try:
            values = parse(record, schema, names)
            for (column, check), value in zip(checks, values, strict=True):
                complaint = check(value)
                if complaint:
                    raise _BadRecord(complaint, column.name)
        except _BadRecord as bad:
            _refuse(ordinal, bad)


def _refuse(ordinal: int, bad: _BadRecord) -> NoReturn:
    field = f"records[{ordinal}]" + (f".{bad.column}" if bad.column else "")
    raise InvalidRequest(
        f"record {ordinal}: {bad.text}",
        reason=Reason.RECORD_INVALID,
        violations=(FieldViolation(field, bad.text),),
    ) from None  # the cause holds the record's content


def _decode(record: bytes) -> str:
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise _BadRecord("not UTF-8") from None
    if "\x00" in text:
        raise _BadRecord("holds a NUL")
    return text


def _csv_values(record: bytes, schema: Sequence[Column], _names: frozenset[str]) -> Sequence[object]:
    text = _decode(record)
    if "\r" in text:
        raise _BadRecord("holds a carriage return; lines end with a line feed alone")
    try:
        # Most lines have no quotes, and splitting is several times faster.
        values = next(csv.reader([text], strict=True), []) if '"' in text else text.split(",")
    except csv.Error:
        raise _BadRecord("not a line of CSV") from None
    if not text or len(values) != len(schema):
        raise _BadRecord("has another number of columns than the schema")
    return values


def _json_values(record: bytes, schema: Sequence[Column], names: frozenset[str]) -> Sequence[object]:
    try:
        found = json.loads(_decode(record), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, RecursionError):
        raise _BadRecord("not a line of JSON") from None
    except _BadRecord:
        raise
    except ValueError:  # an integer of thousands of digits
        raise _BadRecord("holds a number that is too long") from None
    if not isinstance(found, dict) or found.keys() != names:
        raise _BadRecord("not an object with exactly the columns of the schema")
    return [found[column.name] for column in schema]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BadRecord("names a column twice")
    return found


def _refuse_constant(_name: str) -> NoReturn:
    raise _BadRecord("holds NaN or Infinity, which are not JSON")


def _text_check(column: Column) -> Callable[[object], str | None]:
    """Checks a CSV field: its spelling, then its value."""
    check = _value_check(column)
    if column.type == "text":
        return check
    spelling, convert = (_INTEGER, int) if column.type == "integer" else (_NUMBER, float)
    complaint = _TYPE_TEXTS[column.type]

    def check_text(value: object) -> str | None:
        text = str(value)
        return check(convert(text)) if spelling.fullmatch(text) else complaint

    return check_text


def _value_check(column: Column) -> Callable[[object], str | None]:
    """Checks a value: its type, then its bounds (of a text: its length in characters)."""
    kind, complaint = column.type, _TYPE_TEXTS[column.type]
    minimum = -math.inf if column.minimum is None else column.minimum
    maximum = math.inf if column.maximum is None else column.maximum

    def check_value(value: object) -> str | None:
        size: float
        if kind == "text":
            if not isinstance(value, str):
                return complaint
            size = len(value)
        elif isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
            return complaint  # in Python a bool is an int; in a dataset it is not
        else:
            size = value
            if not (math.isfinite(size) if isinstance(size, float) else -_INTEGER_LIMIT <= size < _INTEGER_LIMIT):
                return complaint
        return None if minimum <= size <= maximum else _OUT_OF_BOUNDS

    return check_value
