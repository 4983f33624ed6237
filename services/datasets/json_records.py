"""JSON Lines: one object a line, with the columns of the schema.

msgspec judges a line in half a microsecond, and does not say that a name came
twice. So quotes are counted: a line has two for each name and each text, and two
more for each name that came again. What does not pass is read a second time,
slowly, to say what is wrong with it.
"""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from casemate.signing.framing import MAXIMUM_RECORD_BYTES
from services.datasets.bad_records import MOST_NAMED, BadRecord, refuse
from services.datasets.record_values import (
    EDGE_YEARS,
    is_within,
    json_text_check,
    json_type,
    parse_unambiguous,
    value_check,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casemate.signing.columns import Column

_TEXTS: Final = frozenset({"text", "bytes", "timestamp"})
"""Types that JSON writes in quotes."""


class JsonCheck:
    """Checks lines of JSON against columns. A nullable column may be left out, which says null."""

    def __init__(self, schema: Sequence[Column]) -> None:
        self._schema = schema
        names = {f"c{number}": column.name for number, column in enumerate(schema)}
        members: list[Any] = [_member(number, column) for number, column in enumerate(schema)]
        # Those with a default come last, as a constructor would want it; none is ever constructed.
        members.sort(key=len)
        record = msgspec.defstruct("Record", members, rename=names, forbid_unknown_fields=True, gc=False)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(record).decode
        self._times = [attrgetter(f"c{number}") for number, column in enumerate(schema) if column.type == "timestamp"]
        varies = [c.nullable or c.type == "json" for c in schema]
        self._quotes = sum(2 + 2 * (c.type in _TEXTS) for c, some in zip(schema, varies, strict=True) if not some)
        self._varying = [
            (attrgetter(f"c{number}"), column, json_text_check(column))
            for number, (column, some) in enumerate(zip(schema, varies, strict=True))
            if some
        ]

    def require(self, records: Sequence[bytes], *, first_record: int) -> int:
        """See `records.RecordCheck`."""
        found: list[tuple[int, BadRecord]] = []
        # The names are of this function, because a loop of a thousand a millisecond looks them up.
        decode, quotes, varying, times = self._decode, self._quotes, self._varying, self._times
        for number, record in enumerate(records, first_record):
            try:
                values = decode(record)
                wanted = quotes if not varying else self._count(values)
                plain = record if b"\\" not in record else _unescaped(record)
                fits = plain.count(b'"') == wanted and len(record) < MAXIMUM_RECORD_BYTES
                if times:
                    fits = fits and all(_is_held(get(values)) for get in times)
            except (ValueError, RecursionError):  # all of msgspec's, and UnicodeDecodeError
                fits = False
            if not fits:
                found.append((number, self._explain(record)))
                if len(found) == MOST_NAMED:
                    break
        if found:
            raise refuse(found) from None
        return len(records)

    def _count(self, values: Any) -> int:  # noqa: ANN401  # a struct made at run time
        """The quotes of a line some of whose columns may be missing, null or JSON.

        Raises:
            BadRecord: a JSON value is not unambiguous.
        """
        count = self._quotes
        for get, column, check in self._varying:
            value = get(values)
            if value is msgspec.UNSET:
                continue
            count += 2
            if column.type == "json":
                text = bytes(value)
                if complaint := check(text.decode()):
                    raise BadRecord(complaint, column.name)
                count += _unescaped(text).count(b'"')
            elif value is not None and column.type in _TEXTS:
                count += 2
        return count

    def _explain(self, record: bytes) -> BadRecord:
        """What is wrong with a record that did not pass."""
        try:
            self._read(record)
        except BadRecord as bad:
            return bad
        return BadRecord("not a line of JSON that fits the schema")

    def _read(self, record: bytes) -> None:
        if len(record) >= MAXIMUM_RECORD_BYTES:
            raise BadRecord("larger than 1 MiB")
        try:
            text = record.decode()
        except UnicodeDecodeError:
            raise BadRecord("not UTF-8") from None
        found = parse_unambiguous(text)
        names = {column.name for column in self._schema}
        needed = {column.name for column in self._schema if not column.nullable}
        if not isinstance(found, dict) or found.keys() - names or needed - found.keys():
            raise BadRecord("not an object with exactly the columns of the schema")
        for column in self._schema:
            complaint = value_check(column)(found.get(column.name))
            if complaint:
                raise BadRecord(complaint, column.name)


def _member(number: int, column: Column) -> tuple[Any, ...]:
    kind = json_type(column)
    return (f"c{number}", kind | msgspec.UnsetType, msgspec.UNSET) if column.nullable else (f"c{number}", kind)


def _is_held(moment: datetime | msgspec.UnsetType | None) -> bool:
    return not isinstance(moment, datetime) or moment.year not in EDGE_YEARS or is_within(moment)


def _unescaped(data: bytes) -> bytes:
    """Valid JSON without its escaped quotes. Backslashes pair from the left, so an escaped one hides none."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")
