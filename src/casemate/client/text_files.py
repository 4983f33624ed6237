"""Lines of a file as chunks, cut by the block: no line is looked at by itself unless something is odd about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Final

from casemate.client.dataset_files import CutChunk, Inferred, invalid_file, mixed, named_column
from casemate.errors import ConfigurationError
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_ROWS
from casemate.signing.framing import MAXIMUM_RECORD_BYTES

BOM: Final = b"\xef\xbb\xbf"

_SCALARS: Final = {bool: "boolean", int: "integer", float: "number", str: "text"}

_LONG_LINE: Final = 128
"""Bytes from which it is faster to jump from line feed to line feed than to look at every byte twice."""

_EMPTY_LINE: Final = re.compile(rb"\n\n").search  # in half the time of `in`

_SAMPLED: Final = 32
"""Lines after which a block is judged to be of short ones."""

Split = Callable[[bytes], list[bytes]]
"""The records in bytes that end with a line feed, without their ends."""


def lines_of(data: bytes) -> list[bytes]:
    """Lines without their ends, LF or CRLF."""
    return data[:-1].replace(b"\r\n", b"\n").removesuffix(b"\r").split(b"\n")


def cut_text(
    path: Path,
    *,
    chunk_bytes: int,
    start: int = 0,
    split: Split = lines_of,
    whole: Callable[[bytes], int] | None = None,
) -> Iterator[CutChunk]:
    """Chunks of the records of a file, from a byte on; empty lines are left out, ends of lines become line feeds.

    Args:
        path: the file.
        chunk_bytes: how large a chunk may be; a larger record stands alone.
        start: where to begin.
        split: parts bytes into records, where a plain line is not one.
        whole: how many of the bytes are whole records; up to the last line feed if not given.

    Raises:
        InvalidRequest: there is no record, or one is larger than 1 MiB.
    """
    count = 0
    for block in _blocks(path, start, chunk_bytes, whole or (lambda data: data.rfind(b"\n") + 1)):
        for chunk in _chunks(block, split):
            if len(chunk.data) > MAXIMUM_RECORD_BYTES:
                _require_small(chunk.data, split, count)
            count += chunk.rows
            yield chunk
    if not count:
        raise invalid_file("file", "holds no record")


def _blocks(path: Path, start: int, chunk_bytes: int, whole: Callable[[bytes], int]) -> Iterator[bytes]:
    """Runs of whole lines, the last one ended too."""
    offset, wanted = start, chunk_bytes
    with path.open("rb", buffering=0) as file:
        # Read at a place, the bytes behind the last line's end once more: cheaper than to join them to the next.
        while piece := _read(file, offset, wanted):
            end = whole(piece)
            if end:
                yield piece[:end]
                offset, wanted = offset + end, chunk_bytes
            elif len(piece) < wanted:
                yield piece + b"\n"  # the end of the file
                return
            elif len(piece) > MAXIMUM_RECORD_BYTES + chunk_bytes:
                yield piece + b"\n"  # refused by its size
                return
            else:
                wanted += chunk_bytes


def _read(file: FileIO, offset: int, size: int) -> bytes:
    """So many bytes, fewer only at the end of the file."""
    file.seek(offset)
    piece: bytes = file.read(size)
    while len(piece) < size and (more := file.read(size - len(piece))):
        piece += more
    return piece


def _chunks(block: bytes, split: Split) -> Iterator[CutChunk]:
    if split is lines_of and b"\r" not in block:
        rows = _full_lines(block)
        if 0 < rows <= MAXIMUM_CHUNK_ROWS:
            yield CutChunk(block, rows)
            return
    records = [record for record in split(block) if record]
    for begun in range(0, len(records), MAXIMUM_CHUNK_ROWS):
        some = records[begun : begun + MAXIMUM_CHUNK_ROWS]
        yield CutChunk(b"\n".join(some) + b"\n", len(some))


def _full_lines(block: bytes) -> int:
    """How many lines there are, or none if one of them is empty."""
    find = block.find
    rows, begun, size = 0, 0, len(block)
    while begun < size:
        end = find(b"\n", begun)
        if end == begun:
            return 0
        rows, begun = rows + 1, end + 1
        if rows == _SAMPLED and begun < rows * _LONG_LINE:
            return 0 if block.startswith(b"\n") or _EMPTY_LINE(block) else block.count(b"\n")
    return rows


def _require_small(data: bytes, split: Split, before: int) -> None:
    for number, record in enumerate(split(data), before):
        if len(record) >= MAXIMUM_RECORD_BYTES:
            raise invalid_file(f"records[{number}]", "is larger than 1 MiB")


def begins(path: Path) -> int:
    """Where the text of a file begins: behind a byte order mark, if it has one."""
    with path.open("rb") as file:
        return len(BOM) if file.read(len(BOM)) == BOM else 0


def jsonl_chunks(path: Path, *, chunk_bytes: int) -> Iterator[CutChunk]:
    """The chunks of a file of JSON Lines."""
    return cut_text(path, chunk_bytes=chunk_bytes, start=begins(path))


def infer_jsonl(path: Path) -> Inferred:
    """The columns of a file of JSON Lines, in the order they first appear, each with the narrowest type that fits.

    What fits no one type but `json` is remarked on, by the first record that differs.

    Raises:
        InvalidRequest: a line is no JSON object, or a name cannot be a column's.
    """
    try:
        import msgspec  # noqa: PLC0415  # of the extra `formats`
    except ImportError as missing:
        raise ConfigurationError("JSON Lines need more: pip install 'casemate[formats]'") from missing
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    kinds: dict[str, str] = {}
    seen: dict[str, int] = {}
    empty: set[str] = set()
    remarks: dict[str, str] = {}
    count = 0
    for chunk in jsonl_chunks(path, chunk_bytes=1 << 20):
        for line in chunk.data[:-1].split(b"\n"):
            try:
                record = decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise invalid_file(f"records[{count}]", "is not a JSON object") from None
            count += 1
            for name, value in record.items():
                seen[name] = seen.get(name, 0) + 1
                if value is None:
                    empty.add(name)
                    kinds.setdefault(name, "")
                else:
                    before, kinds[name] = kinds.get(name, ""), _wider(kinds.get(name, ""), value)
                    if kinds[name] == "json" and before not in {"", "json"}:
                        remarks[name] = mixed("json", before, count - 1)
    columns = [
        named_column(name, place, type=kind or "text", nullable=name in empty or seen[name] < count)
        for place, (name, kind) in enumerate(kinds.items())
    ]
    return Inferred(columns, remarks)


def _wider(kind: str, value: object) -> str:
    """The type that holds what `kind` holds, and this value."""
    found = _SCALARS.get(type(value), "")
    if not found:
        numbers = isinstance(value, list) and all(type(each) in {int, float} for each in value)
        found = "vector" if numbers else "json"
    if kind in {"", found}:
        return found
    return "number" if {kind, found} == {"integer", "number"} else "json"
