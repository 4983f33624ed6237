"""CSV by RFC 4180: a header line, quoted fields that may hold commas, doubled quotes and line ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from casemate.client.dataset_files import CutChunk, Inferred, invalid_file, mixed, named_column
from casemate.client.text_files import begins, cut_text, lines_of
from casemate.signing.framing import MAXIMUM_RECORD_BYTES

_FIELD: Final = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n]*+))(,|\Z)')
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]++(\.[0-9]*+)?|\.[0-9]++)([eE][+-]?[0-9]{1,2})?")
_TIMESTAMP: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")
_KINDS: Final = {
    "integer": _INTEGER.fullmatch,
    "number": _NUMBER.fullmatch,
    "boolean": re.compile("true|false").fullmatch,
    "timestamp": _TIMESTAMP.fullmatch,
    "text": re.compile(r"(?s:.*)").fullmatch,
}
"""Types, the narrower first."""


def csv_chunks(path: Path, *, chunk_bytes: int) -> Iterator[CutChunk]:
    """The chunks of a file of CSV, without its header line. A line end inside quotes stays as it is.

    Raises:
        InvalidRequest: there is no record, or one is larger than 1 MiB: a quote that is never closed makes one.
    """
    _, start = _header(path)
    return cut_text(path, chunk_bytes=chunk_bytes, start=start, split=_records, whole=_whole)


def infer_csv(path: Path) -> Inferred:
    """The columns of the header line, each with the narrowest type that fits all records.

    A column with nothing between two commas somewhere is nullable, unless it is of text. Quotes around nothing are a
    text. What fits no one type but text is remarked on, by the first record that differs.

    Raises:
        InvalidRequest: there is no header, a name cannot be a column's, or a record has other columns.
    """
    names, _ = _header(path)
    kinds: list[str] = [""] * len(names)
    empty = [False] * len(names)
    remarks: dict[str, str] = {}
    count = 0
    for chunk in csv_chunks(path, chunk_bytes=1 << 20):
        for record in _records(chunk.data):
            values = _fields(record, count)
            if len(values) != len(names):
                raise invalid_file(f"records[{count}]", f"has {len(values)} columns, the header {len(names)}")
            for place, value in enumerate(values):
                if value is None:
                    empty[place] = True
                    continue
                kind = kinds[place]
                if not kind or not _KINDS[kind](value):
                    kinds[place] = _wider(kind, value)
                    if kind and kinds[place] == "text":
                        remarks[names[place]] = mixed("text", kind, count)
            count += 1
    columns = [
        named_column(name, place, type=kind or "text", nullable=empty[place] and kind not in {"", "text"})
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    return Inferred(columns, remarks)


def _wider(kind: str, value: str) -> str:
    """The type that holds what `kind` holds, and this value, which is none of it."""
    narrowest = next(name for name, fits in _KINDS.items() if fits(value))
    return narrowest if not kind or (kind, narrowest) == ("integer", "number") else "text"


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
        names = [name or "" for name in _fields(line.rstrip(b"\r\n"), None)]
        if names == [""]:
            raise invalid_file("file", "has no header line")
        return names, start + len(line)


def _fields(record: bytes, number: int | None) -> list[str | None]:
    where = "header" if number is None else f"records[{number}]"
    try:
        return read_fields(record)
    except UnicodeDecodeError:
        raise invalid_file(where, "is not UTF-8") from None
    except ValueError:
        raise invalid_file(where, "is not CSV: quotes stand around a whole field, and are doubled inside") from None


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
