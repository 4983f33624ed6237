"""Values of records one by one: their types, bounds and categories, and what is wrong with one that does not fit."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import msgspec

from casemate.signing.strict_json import MAXIMUM_DEPTH
from services.datasets.bad_records import BadRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.signing.columns import Column

_MOMENT: Final[Any] = Annotated[datetime, msgspec.Meta(tz=True)]

EDGE_YEARS: Final = (1, 9999)

Check = "Callable[[object], str | None]"
"""Gives the complaint about a value, or none."""

_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
# Possessive: of a megabyte of digits with a letter behind them, every other split would be tried too, for hours.
_NUMBER: Final = re.compile(r"[+-]?([0-9]++(\.[0-9]*+)?|\.[0-9]++)([eE][+-]?[0-9]++)?")
INTEGER_BOUNDS: Final = (-(2**63), 2**63 - 1)
"""Integers are those of 64 bits: what every reader can hold without losing digits."""

COMPLAINTS: Final = {
    "integer": "not an integer of 64 bits",
    "number": "not a finite number",
    "text": "not a text",
    "boolean": "not true or false",
    "bytes": "not base64",
    "timestamp": "not a time of RFC 3339 with an offset, in the years 1 to 9999 of UTC",
    "vector": "not a list of finite numbers",
    "json": "not unambiguous JSON",
}
EMPTY: Final = "empty in a column that may not be"
OUT_OF_BOUNDS: Final = "outside the column's minimum and maximum"
NO_CATEGORY: Final = "not one of the column's categories"


def json_type(column: Column) -> Any:  # noqa: ANN401  # a type, made at run time
    """What msgspec is to decode a column's JSON value as; its bounds and categories included."""
    kind: Any = {"boolean": bool, "bytes": bytes, "json": msgspec.Raw, "text": str}.get(column.type)
    if column.categories is not None:
        kind = Literal[column.categories]
    elif column.type == "timestamp":
        kind = _MOMENT
    elif column.type == "integer":
        low, high = INTEGER_BOUNDS
        kind = Annotated[int, msgspec.Meta(ge=_or(column.minimum, low), le=_or(column.maximum, high))]
    elif column.type in {"number", "vector"}:
        bounds = msgspec.Meta(ge=column.minimum, le=column.maximum)
        kind = Annotated[float, bounds] if column.type == "number" else list[Annotated[float, bounds]]
    return kind | None if column.nullable and column.type != "json" else kind


def _or(bound: float | None, limit: int) -> int:
    return limit if bound is None else int(bound)


def value_check(column: Column) -> Callable[[object], str | None]:
    """Checks a value that JSON gave."""
    accept = _ACCEPT[column.type](column)

    def check(value: object) -> str | None:
        if value is None and column.type != "json":
            return None if column.nullable else EMPTY
        return accept(value)

    return check


def text_check(column: Column) -> Callable[[str, bool], str | None]:
    """Checks a field of CSV: its text, and whether it stood in quotes. Nothing at all without quotes is empty."""
    accept = _ACCEPT[column.type](column)
    empty = None if column.nullable else EMPTY
    may_be_blank = column.type == "text" and not column.nullable
    spelled = _SPELLING.get(column.type, _as_it_is)

    def check(text: str, quoted: bool) -> str | None:  # noqa: FBT001  # called per field
        if not text and not quoted and not may_be_blank:
            return empty
        return accept(spelled(text))

    return check


def _as_it_is(text: str) -> object:
    return text


def _spelled_integer(text: str) -> object:
    return int(text) if _INTEGER.fullmatch(text) else text


def _spelled_number(text: str) -> object:
    return float(text) if _NUMBER.fullmatch(text) else text


def _spelled_boolean(text: str) -> object:
    return {"true": True, "false": False}.get(text, text)


class _Text(str):
    """JSON that a field of CSV spells, not a JSON string."""

    __slots__ = ()


_SPELLING: Final[dict[str, Callable[[str], object]]] = {
    "integer": _spelled_integer,
    "number": _spelled_number,
    "boolean": _spelled_boolean,
    "json": _Text,
}


def _accept_bounded(column: Column) -> Callable[[object], str | None]:
    complaint = COMPLAINTS[column.type]
    kinds = int if column.type == "integer" else (int, float)
    low = -math.inf if column.minimum is None else column.minimum
    high = math.inf if column.maximum is None else column.maximum

    def accept(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, kinds):
            return complaint  # in Python a bool is an int; in a dataset it is not
        if isinstance(value, float):
            if not math.isfinite(value):
                return complaint
        elif column.type == "integer" and not INTEGER_BOUNDS[0] <= value <= INTEGER_BOUNDS[1]:
            return complaint
        return None if low <= value <= high else OUT_OF_BOUNDS

    return accept


def _accept_vector(column: Column) -> Callable[[object], str | None]:
    accept_element = _accept_bounded(column)

    def accept(value: object) -> str | None:
        if not isinstance(value, list):
            return COMPLAINTS["vector"]
        return next((complaint for each in value if (complaint := accept_element(each))), None)

    return accept


def _accept_text(column: Column) -> Callable[[object], str | None]:
    allowed = None if column.categories is None else frozenset(column.categories)

    def accept(value: object) -> str | None:
        if not isinstance(value, str):
            return COMPLAINTS["text"]
        return None if allowed is None or value in allowed else NO_CATEGORY

    return accept


def _accept_boolean(_column: Column) -> Callable[[object], str | None]:
    return lambda value: None if isinstance(value, bool) else COMPLAINTS["boolean"]


def _accept_converted(kind: Any, complaint: str) -> Callable[[Column], Callable[[object], str | None]]:  # noqa: ANN401
    def accept(value: object) -> str | None:
        try:
            msgspec.convert(value if isinstance(value, str) else None, kind)
        except msgspec.ValidationError:
            return complaint
        return None

    return lambda _column: accept


def _accept_timestamp(_column: Column) -> Callable[[object], str | None]:
    return lambda value: None if isinstance(value, str) and is_moment(value) else COMPLAINTS["timestamp"]


def is_moment(text: str) -> bool:
    """Whether it is a moment of RFC 3339 that every reader can hold."""
    try:
        found: datetime = msgspec.convert(text, _MOMENT)
    except msgspec.ValidationError:
        return False
    return found.year not in EDGE_YEARS or is_within(found)


def is_within(moment: datetime) -> bool:
    """Whether it is in the years 1 to 9999 of UTC too, not by its own offset alone."""
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _accept_json(column: Column) -> Callable[[object], str | None]:
    def accept(value: object) -> str | None:
        try:
            found = parse_unambiguous(value) if isinstance(value, _Text) else value
            _require_depth(found, MAXIMUM_DEPTH)
        except BadRecord as bad:
            return bad.text
        return EMPTY if found is None and not column.nullable else None

    return accept


_ACCEPT: Final[dict[str, Callable[[Column], Callable[[object], str | None]]]] = {
    "integer": _accept_bounded,
    "number": _accept_bounded,
    "vector": _accept_vector,
    "text": _accept_text,
    "boolean": _accept_boolean,
    "bytes": _accept_converted(bytes, COMPLAINTS["bytes"]),
    "timestamp": _accept_timestamp,
    "json": _accept_json,
}


def json_text_check(column: Column) -> Callable[[str], str | None]:
    """Checks a value of a JSON column that is kept as text."""
    accept = _accept_json(column)
    return lambda text: accept(_Text(text))


def parse_unambiguous(text: str) -> object:
    """What JSON says, if it says one thing: no name twice, no NaN, no half of a surrogate pair.

    Raises:
        BadRecord: it does not.
    """
    try:
        found: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except BadRecord:
        raise
    except (json.JSONDecodeError, RecursionError):
        raise BadRecord("not JSON") from None
    except ValueError:  # an integer of thousands of digits
        raise BadRecord("holds a number that is too long") from None
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRecord("names a field twice")
    return found


def _refuse_constant(_name: str) -> NoReturn:
    raise BadRecord("holds NaN or Infinity, which are not JSON")


def _require_depth(value: object, depth: int) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRecord("holds half of a surrogate pair")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise BadRecord("holds a number that is too large")
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise BadRecord(f"nested more than {MAXIMUM_DEPTH} deep")
        for member in value.values() if isinstance(value, dict) else value:
            _require_depth(member, depth - 1)
        for name in value if isinstance(value, dict) else ():
            _require_depth(name, depth)
