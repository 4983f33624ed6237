"""CSV by RFC 4180: quoted fields may hold commas, doubled quotes and line ends. Records end with a line feed alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from casemate.signing.framing import MAXIMUM_RECORD_BYTES
from services.datasets.bad_records import MOST_NAMED, BadRecord, refuse
from services.datasets.record_values import text_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.signing.columns import Column

# Possessive: a field is read once, whatever comes behind it.
_FIELD: Final = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n]*+))(,|\Z)')
_NO_CSV: Final = "not a record of CSV"
_OTHER_COLUMNS: Final = "has another number of columns than the schema"


def split_lines(data: bytes) -> list[bytes]:
    """The records of a chunk, which ends with a line feed. One inside quotes ends no record."""
    lines = data[:-1].split(b"\n")
    if b'"' not in data:
        return lines
    records: list[bytes] = []
    held: list[bytes] = []
    inside = False
    for line in lines:
        held.append(line)
        inside ^= line.count(b'"') % 2 == 1  # doubled or around a field, quotes come in pairs
        if not inside:
            records.append(line if len(held) == 1 else b"\n".join(held))
            held = []
    if held:
        records.append(b"\n".join(held))  # never closed: refused as it is read
    return records


def parse_fields(text: str, *, most: int) -> list[tuple[str, bool]]:
    """The fields of a record, and whether each stood in quotes.

    Raises:
        BadRecord: quotes or line ends are where RFC 4180 has none, or there are more than `most`.
    """
    fields: list[tuple[str, bool]] = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            raise BadRecord(_NO_CSV)
        quoted, plain, comma = match.groups()
        if len(fields) == most:
            raise BadRecord(_OTHER_COLUMNS)
        fields.append((plain, False) if quoted is None else (quoted.replace('""', '"'), True))
        if not comma:
            return fields
        position = match.end()


class CsvCheck:
    """Checks records of CSV against columns."""

    def __init__(self, schema: Sequence[Column]) -> None:
        self._checks = [(column.name, text_check(column)) for column in schema]

    def require(self, records: Sequence[bytes], *, first_record: int) -> int:
        """See `records.RecordCheck`."""
        found: list[tuple[int, BadRecord]] = []
        for number, record in enumerate(records, first_record):
            try:
                self._require(record)
            except BadRecord as bad:
                found.append((number, bad))
                if len(found) == MOST_NAMED:
                    break
        if found:
            raise refuse(found) from None
        return len(records)

    def _require(self, record: bytes) -> None:
        if len(record) >= MAXIMUM_RECORD_BYTES:
            raise BadRecord("larger than 1 MiB")
        text = _decode(record)
        if '"' in text:
            fields = parse_fields(text, most=len(self._checks))
        elif "\r" in text:
            raise BadRecord("holds a carriage return; lines end with a line feed alone")
        elif text.count(",") >= len(self._checks):
            raise BadRecord(_OTHER_COLUMNS)  # counted first: a megabyte of commas is a hundred of fields
        else:
            fields = [(field, False) for field in text.split(",")]  # most lines have no quotes
        if not text or len(fields) != len(self._checks):
            raise BadRecord(_OTHER_COLUMNS)
        for (name, check), (field, quoted) in zip(self._checks, fields, strict=True):
            complaint = check(field, quoted)
            if complaint:
                raise BadRecord(complaint, name)


def _decode(record: bytes) -> str:
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None
    if "\x00" in text:
        raise BadRecord("holds a NUL")
    return text
