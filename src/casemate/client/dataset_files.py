"""Files as datasets: CSV, JSON Lines, Arrow and Parquet become chunks that are signed and sent.

A file is read twice, once to be digested and once to be sent, and never kept
whole. The second reading gives the same bytes, or the service refuses what differs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import CasemateError, ConfigurationError, FieldViolation, InvalidRequest, Reason
from casemate.signing.columns import Column
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_BYTES, MAXIMUM_CHUNKS, MAXIMUM_COLUMNS

if TYPE_CHECKING:
    from casemate.signing.framing import Format
    from casemate.signing.statements import DatasetManifest

_ARROW_FILE: Final = b"ARROW1"
_ARROW_END: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"

FILE_CHUNK_BYTES: Final = 1 << 20
"""Stays in a processor's cache while it is hashed and sealed; larger files have larger chunks."""


@dataclass(frozen=True, slots=True)
class CutChunk:
    """Bytes of whole rows, or the pieces that they are in. `records` is None where a row is a record."""

    pieces: bytes | Sequence[Any]
    rows: int
    records: int | None = None

    @property
    def parts(self) -> Sequence[Any]:
        """The pieces, in order; buffers of any kind."""
        return (self.pieces,) if isinstance(self.pieces, bytes) else self.pieces

    @property
    def size(self) -> int:
        """How many bytes they are together."""
        return sum(map(len, self.parts))

    @property
    def data(self) -> bytes:
        """All of them in one; where they are several, a copy."""
        return self.pieces if isinstance(self.pieces, bytes) else b"".join(self.parts)


ChunkSource = Callable[[], Iterator[CutChunk]]
"""Gives the same chunks each time it is called."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """The columns that were read off a file, and by name what is remarkable about them."""

    columns: list[Column]
    remarks: dict[str, str]


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """A file that can be signed and pushed: how its records are written, what they hold, and its chunks.

    `remarks` are sentences about columns that hold values of several types: worth a look before they are signed.
    """

    format: Format
    schema: tuple[Column, ...]
    chunks: ChunkSource
    remarks: tuple[str, ...] = ()


def open_dataset_file(path: Path, *, declared: Iterable[Mapping[str, object]] = ()) -> DatasetFile:
    """The dataset in a file, its columns read off the data.

    Args:
        path: `.csv` with a header line, `.jsonl` or `.ndjson`, `.arrow`, `.ipc` or `.feather`, `.parquet`.
        declared: columns as objects with `name` and any of `type`, `minimum`, `maximum`, `nullable`,
            `categories`, `storage`; what they say takes the place of what was read off the data.

    Raises:
        ConfigurationError: the name has another ending, or what reads it is not installed.
        InvalidRequest: the file is empty or malformed, names a column twice, or has no such column.
    """
    openers = {
        ".csv": _open_csv,
        ".jsonl": _open_jsonl,
        ".ndjson": _open_jsonl,
        ".arrow": _open_arrow,
        ".ipc": _open_arrow,
        ".feather": _open_arrow,
        ".parquet": _open_parquet,
    }
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise ConfigurationError(f"{path} ends in none of {', '.join(openers)}")
    size = path.stat().st_size
    if not size:
        raise invalid_file("file", "is empty")
    # Half the chunks that a manifest may have: a chunk of whole rows is seldom full.
    chunk_bytes = min(max(FILE_CHUNK_BYTES, size // (MAXIMUM_CHUNKS // 2) + 1), MAXIMUM_CHUNK_BYTES)
    return opener(path, list(declared), chunk_bytes)


def read_as_signed(path: Path, manifest: DatasetManifest) -> Iterator[bytes]:
    """The bytes of a file's rows, as they were signed if it is the file that the manifest was made of.

    Raises:
        ConfigurationError: what reads it is not installed.
        InvalidRequest: it cannot be read as what its name says.
    """
    if manifest.format == "csv":
        from casemate.client.csv_files import csv_chunks  # noqa: PLC0415  # as below

        chunks = csv_chunks(path, chunk_bytes=FILE_CHUNK_BYTES)
    elif manifest.format == "jsonl":
        from casemate.client.text_files import jsonl_chunks  # noqa: PLC0415  # as below

        chunks = jsonl_chunks(path, chunk_bytes=FILE_CHUNK_BYTES)
    else:
        from casemate.client import arrow_files  # noqa: PLC0415  # as below

        read = arrow_files.read_parquet if path.suffix.lower() == ".parquet" else arrow_files.read_arrow
        chunks = arrow_files.signed_batches(path, manifest.schema, chunk_bytes=FILE_CHUNK_BYTES, read=read)
    return (chunk.data for chunk in chunks)


def declare(columns: Iterable[Column], declared: Iterable[Mapping[str, object]]) -> tuple[Column, ...]:
    """The columns that were read off the data, where nothing else was declared.

    Raises:
        InvalidRequest: a declaration is of no column of the file, or means nothing; two columns have one name.
    """
    known: dict[str, Column] = {}
    for column in columns:
        if column.name in known:
            raise invalid_file(f"columns.{column.name}", "is there twice")
        known[column.name] = column
    if not 1 <= len(known) <= MAXIMUM_COLUMNS:
        raise invalid_file("columns", f"are not 1 to {MAXIMUM_COLUMNS}")
    for each in declared:
        name = each.get("name")
        if not isinstance(name, str) or name not in known:
            raise invalid_file(f"schema.{name}", "is no column of the file")
        found = known[name].to_json()
        if each.get("type", found["type"]) != found["type"]:
            found = {"name": name, "minimum": None, "maximum": None}
        known[name] = Column.from_json(found | dict(each))
    return tuple(known.values())


def load_declared(path: Path) -> list[Mapping[str, object]]:
    """The columns that a JSON file declares: a list of objects, as `open_dataset_file` takes them.

    Raises:
        ConfigurationError: it is no such list.
    """
    try:
        said = json.loads(path.read_bytes())
    except ValueError:
        raise ConfigurationError(f"{path} is not JSON") from None
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise ConfigurationError(f"{path} is not a list of columns, each an object with a name")
    return said


def named_column(name: str, place: int, **said: object) -> Column:
    """A column of a file, or an error that names it.

    Raises:
        InvalidRequest: it may not have this name.
    """
    try:
        return Column.from_json({"name": name, "minimum": None, "maximum": None, **said})
    except CasemateError:
        text = f"{name!r}, column {place + 1}, is no name: letters, digits, _ . - only, a letter first, 63 at most"
        raise invalid_file(f"columns[{place}]", text) from None


def invalid_file(field: str, description: str) -> InvalidRequest:
    """What is wrong with a file; said to whoever has it, so that it may name what is in it."""
    return InvalidRequest(
        f"{field} {description}", reason=Reason.RECORD_INVALID, violations=(FieldViolation(field, description),)
    )


def mixed(kind: str, before: str, record: int) -> str:
    """That a column is of a type for one record's sake, which is counted from 0 as in the service's refusals."""
    return f"is taken as {kind}: records[{record}] is not {before}, as those before it are"


def _remarks(found: Inferred, declared: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """What is said of columns whose type nobody declared."""
    typed = {each.get("name") for each in declared if "type" in each}
    return tuple(f"columns.{name} {text}" for name, text in found.remarks.items() if name not in typed)


def _open_csv(path: Path, declared: list[Mapping[str, object]], chunk_bytes: int) -> DatasetFile:
    from casemate.client.csv_files import csv_chunks, infer_csv  # noqa: PLC0415  # what is not read is not loaded

    found = infer_csv(path)
    schema = declare(found.columns, declared)
    return DatasetFile("csv", schema, lambda: csv_chunks(path, chunk_bytes=chunk_bytes), _remarks(found, declared))


def _open_jsonl(path: Path, declared: list[Mapping[str, object]], chunk_bytes: int) -> DatasetFile:
    from casemate.client.text_files import infer_jsonl, jsonl_chunks  # noqa: PLC0415  # as above

    found = infer_jsonl(path)
    schema = declare(found.columns, declared)
    return DatasetFile("jsonl", schema, lambda: jsonl_chunks(path, chunk_bytes=chunk_bytes), _remarks(found, declared))


def _open_arrow(path: Path, declared: list[Mapping[str, object]], chunk_bytes: int) -> DatasetFile:
    from casemate.client import arrow_files  # noqa: PLC0415  # as above; needs pyarrow

    file = arrow_files.open_batches(path, declared, chunk_bytes, read=arrow_files.read_arrow)
    return replace(file, remarks=_remarks_on_end(path))


def _remarks_on_end(path: Path) -> tuple[str, ...]:
    """Of an Arrow stream that was cut between two batches nothing is amiss but its end, which writers may leave out."""
    with path.open("rb") as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(-min(path.stat().st_size, len(_ARROW_END)), os.SEEK_END)
        ended = file.read() == _ARROW_END
    return () if is_file or ended else ("file has no end-of-stream marker: if it was cut, records are missing",)


def _open_parquet(path: Path, declared: list[Mapping[str, object]], chunk_bytes: int) -> DatasetFile:
    from casemate.client import arrow_files  # noqa: PLC0415  # as above

    return arrow_files.open_batches(path, declared, chunk_bytes, read=arrow_files.read_parquet)
