"""CSV by RFC 4180: a header line, quoted fields that may hold commas, doubled quotes and line ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.client.dataset_files import CutChunk, invalid_file, named_column
from casemate.client.text_files import begins, cut_text, lines_of
from casemate.signing.columns import Column
from casemate.signing.framing import MAXIMUM_RECORD_BYTES

_FIELD: Final = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n]*+))(,|\Z)')
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")
_NARROW: Final = (("integer", _INTEGER), ("number", _NUMBER), ("boolean", re.compile("true|false")))
_KINDS: Final = (*_NARROW, ("timestamp", _TIMESTAMP), ("text", re.compile(r"(?s:.*)")))


def csv_chunks(path: Path, *, chunk_bytes: int) -> Iterator[CutChunk]:
    """The chunks of a file of CSV, without its header line. A line end inside quotes stays as it is.

    Raises:
        InvalidRequest: there is no record, or one is larger than 1 MiB: a quote that is never closed makes one.
    """
    _, start = _header(path)
    return cut_text(path, chunk_bytes=chunk_bytes, start=start, split=_records, whole=_whole)


def infer_csv(path: Path) -> list[Column]:
    """The columns of the header line, each with the narrowest type that fits all records.

    A column with nothing between two commas somewhere is nullable, unless it is of text.

    Raises:
        InvalidRequest: there is no header, a name cannot be a column's, or a record has other columns.
    """
    names, _ = _header(path)
    kinds = [0] * len(names)
    empty = [False] * len(names)
    filled = [False] * len(names)
    count = 0
    for chunk in csv_chunks(path, chunk_bytes=1 << 20):
        for record in _records(chunk.data):
            values = _fields(record, count)
            count += 1
            if len(values) != len(names):
                raise invalid_file(f"records[{count - 1}]", f"has {len(values)} columns, the header {len(names)}")
            for place, value in enumerate(values):
                if value == "":
                    empty[place] = True
                    continue
                filled[place] = True
                while not _KINDS[kinds[place]][1].fullmatch(value):
                    kinds[place] += 1
    types = [_KINDS[kind][0] if some else "text" for kind, some in zip(kinds, filled, strict=True)]
    return [
        named_column(name, place, type=kind, nullable=empty[place] and kind != "text")
        for place, (name, kind) in enumerate(zip(names, types, strict=True))
    ]


def _header(path: Path) -> tuple[list[str], int]:
    """The names in the first record, and where the second begins."""
    start = begins(path)
    with path.open("rb") as file:
        file.seek(start)
        line = b""
        while (piece := file.readline(MAXIMUM_RECORD_BYTES)) and len(line) <= MAXIMUM_RECORD_BYTES:
            line += piece
            if line.count(b'"') % 2 == 0:
                break
        names = _fields(line.rstrip(b"\r\n"), None)
        if names in ([""], []):
            raise invalid_file("file", "has no header line")
        return names, start + len(line)


def _fields(record: bytes, number: int | None) -> list[str]:
    where = "header" if number is None else f"records[{number}]"
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise invalid_file(where, "is not UTF-8") from None
    if '"' not in text:
        return text.split(",")
    fields: list[str] = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            raise invalid_file(where, "is not CSV: quotes stand around a whole field, and are doubled inside")
        quoted, plain, comma = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        if not comma:
            return fields
        position = match.end()


def read_fields(record: bytes) -> list[str | None]:
    """The fields of a record; none where nothing at all stands between two commas, which quotes are not.

    Raises:
        ValueError: it is not CSV.
    """
    text = record.decode()
    if '"' not in text:
        return [field or None for field in text.split(",")]
    fields: list[str | None] = []
    position = 0
    while True:
        match = _FIELD.match(text, position)
        if match is None:
            raise ValueError("not a record of CSV")
        quoted, plain, comma = match.groups()
        fields.append(plain or None if quoted is None else quoted.replace('""', '"'))
        if not comma:
            return fields
        position = match.end()


def _whole(data: bytes) -> int:
    """How many bytes are whole records: up to the last line feed outside quotes."""
    end = data.rfind(b"\n") + 1
    inside = data.count(b'"', 0, end) % 2
    while end and inside:
        before = data.rfind(b"\n", 0, end - 1) + 1
        inside ^= data.count(b'"', before, end) % 2
        end = before
    return end


def _records(data: bytes) -> list[bytes]:
    """Records of bytes that end with a line feed, each without its line's end; those inside quotes stay."""
    if b'"' not in data:
        return lines_of(data)
    records: list[bytes] = []
    held: list[bytes] = []
    inside = False
    for line in data[:-1].split(b"\n"):
        held.append(line)
        inside ^= line.count(b'"') % 2 == 1
        if not inside:
            records.append(b"\n".join(held).removesuffix(b"\r"))
            held = []
    if held:
        records.append(b"\n".join(held))
    return records
