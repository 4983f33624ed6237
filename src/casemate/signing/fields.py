"""Typed, bounded fields of statements; each returns its value or raises with the field's path."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Tenants, datasets, models: ASCII, so that no two look alike, and one path segment."""

FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
"""One path segment; never a path."""

COLUMN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
UPLOAD_ID: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
AUDIENCE: Final = re.compile(r"[a-z0-9][a-z0-9.:/_-]{0,252}")

MAXIMUM_INTEGER: Final = 2**53 - 1
"""The largest that every JSON reader agrees on: RFC 7493 §2.2."""

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def members(value: object, field: str, names: frozenset[str]) -> dict[str, object]:
    """An object that has exactly these names."""
    if not isinstance(value, dict):
        raise invalid(field, "is not an object")
    if value.keys() - names:
        raise invalid(field, "has an unknown field")  # not named: it would repeat what was sent
    for name in sorted(names - value.keys()):
        raise invalid(f"{field}.{name}", "is missing")
    return value


def array(value: object, field: str) -> list[object]:
    """A list; its length is judged by whoever gets it."""
    if not isinstance(value, list):
        raise invalid(field, "is not a list")
    return value


def count(value: Sequence[object], field: str, *, minimum: int = 0, maximum: int) -> None:
    """Return if so many items are allowed."""
    if not minimum <= len(value) <= maximum:
        raise invalid(field, f"does not have {minimum} to {maximum} items")


def text(value: object, field: str, pattern: re.Pattern[str]) -> str:
    """Text that matches the whole pattern."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise invalid(field, "is not of the allowed form")
    return value


def integer(value: object, field: str, *, minimum: int, maximum: int = MAXIMUM_INTEGER) -> int:
    """An integer within bounds; true and 1.0 are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise invalid(field, f"is not an integer from {minimum} to {maximum}")
    return value


def number(value: object, field: str) -> float:
    """A finite number, as a float."""
    if isinstance(value, float) and math.isfinite(value):
        return value
    return float(integer(value, field, minimum=-MAXIMUM_INTEGER))


def digest(value: object, field: str) -> bytes:
    """32 bytes."""
    if not isinstance(value, bytes) or len(value) != 32:
        raise invalid(field, "does not have 32 bytes")
    return value


def hex_digest(value: object, field: str) -> bytes:
    """32 bytes from lower-case hex."""
    return bytes.fromhex(text(value, field, _HASH))


def moment(value: object, field: str) -> datetime:
    """An aware time in UTC, cut to whole seconds."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise invalid(field, "is not a time with a zone")
    try:
        return value.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise invalid(field, "is out of range") from error


def parse_moment(value: object, field: str) -> datetime:
    """A time from RFC 3339 text in UTC, in whole seconds."""
    written = text(value, field, _MOMENT)
    try:
        return datetime.fromisoformat(written)
    except ValueError as error:
        raise invalid(field, "is not a date and time") from error


def format_moment(value: datetime) -> str:
    """The text that `parse_moment` reads."""
    return value.isoformat().removesuffix("+00:00") + "Z"
