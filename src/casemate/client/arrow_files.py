"""Arrow and Parquet as chunks of record batches. Needs pyarrow: the extra `formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

from casemate.client.dataset_files import CutChunk, DatasetFile, declare, invalid_file, named_column
from casemate.errors import ConfigurationError
from casemate.signing.columns import Column
from casemate.signing.framing import MAXIMUM_LONE_ROW_BYTES, MAXIMUM_ROW_BYTES, MAXIMUM_ROW_RECORDS

try:
    import msgspec
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types as kinds

    from casemate.signing.arrow_form import arrow_schema
except ImportError as missing:
    raise ConfigurationError("Arrow and Parquet need more: pip install 'casemate[formats]'") from missing

_FRAME_BYTES: Final = 4096
"""Left for what a message needs beside its values."""

_LAID_OUT_BYTES: Final = 4 << 20
_LAID_OUT_RECORDS: Final = 64 * MAXIMUM_ROW_RECORDS
"""Of a batch that are brought into the declared layout at once: a file may hold one batch, of any size."""

Read = Callable[[Path], Iterator[Any]]
"""Gives Arrow's schema, then record batches."""


def open_batches(path: Path, declared: list[Mapping[str, object]], chunk_bytes: int, *, read: Read) -> DatasetFile:
    """The dataset in a file that holds Arrow's columns.

    Raises:
        InvalidRequest: a column has a type that none of ours can hold, or values do not fit the declared one.
    """
    schema = next(read(path))
    types = {each.get("name"): each.get("type") for each in declared}
    found = [_inferred(field, place, types.get(field.name)) for place, field in enumerate(schema)]
    columns = declare(found, declared)
    return DatasetFile("arrow", columns, lambda: signed_batches(path, columns, chunk_bytes=chunk_bytes, read=read))


def signed_batches(path: Path, columns: tuple[Column, ...], *, chunk_bytes: int, read: Read) -> Iterator[CutChunk]:
    """The chunks of a file whose columns are known."""
    return cut_batches(_batches(path, read), columns, chunk_bytes=chunk_bytes)


def _batches(path: Path, read: Read) -> Iterator[Any]:
    parts = read(path)
    next(parts)
    return parts


def read_arrow(path: Path) -> Iterator[Any]:
    """Schema and batches of an Arrow IPC file or stream."""
    with _readable(path), pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            file = pa.ipc.open_file(source)
            yield file.schema
            for number in range(file.num_record_batches):
                yield _sound(file.get_batch(number))
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            yield stream.schema
            yield from map(_sound, stream)


def _sound(batch: Any) -> Any:  # noqa: ANN401  # pyarrow has no types
    """The batch, if it is sound in itself: whatever reads it follows its offsets."""
    batch.validate(full=True)
    return batch


def read_parquet(path: Path) -> Iterator[Any]:
    """Schema and batches of a Parquet file."""
    from pyarrow import parquet  # noqa: PLC0415  # megabytes that Arrow's own files do not need

    with _readable(path), parquet.ParquetFile(path) as file:
        yield file.schema_arrow
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        width = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0) + 1
        yield from file.iter_batches(batch_size=max(1, min(MAXIMUM_ROW_RECORDS, _LAID_OUT_BYTES // width)))


class _readable:  # noqa: N801  # reads as a word: with _readable(path)
    """Says which file is not one, in our words."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError)):
            raise invalid_file("file", f"{self._path.name} cannot be read as {self._path.suffix[1:]}") from error


def cut_batches(batches: Iterator[Any], columns: tuple[Column, ...], *, chunk_bytes: int) -> Iterator[CutChunk]:
    """Chunks of rows, each a record batch of at most 1,024 records and 256 KiB, or one larger record.

    Raises:
        InvalidRequest: there is no record, one is larger than 8 MiB, or a column cannot be written as declared.
    """
    schema = arrow_schema(columns)
    pending: list[Any] = []
    size = records = count = 0
    for part in chain.from_iterable(_parts(batch, schema) for batch in batches):
        for row, held in _rows(_cast(part, columns, schema), count):
            if pending and size + len(row) > chunk_bytes:
                yield CutChunk(pending, len(pending), records)
                pending, size, records = [], 0, 0
            pending.append(row)
            size, records, count = size + len(row), records + held, count + held
    if not count:
        raise invalid_file("file", "holds no record")
    yield CutChunk(pending, len(pending), records)


def _rows(batch: Any, before: int) -> Iterator[tuple[Any, int]]:  # noqa: ANN401  # pyarrow has no types
    """Messages of a batch, and how many records each holds; as Arrow's buffers, which are joined as they are."""
    begun = 0
    width = batch.nbytes // max(batch.num_rows, 1) + 1
    while begun < batch.num_rows:
        count = max(1, min(MAXIMUM_ROW_RECORDS, (MAXIMUM_ROW_BYTES - _FRAME_BYTES) // width, batch.num_rows - begun))
        row = batch.slice(begun, count).serialize()
        while count > 1 and len(row) > MAXIMUM_ROW_BYTES:
            count = max(1, count * MAXIMUM_ROW_BYTES // (2 * len(row)))
            row = batch.slice(begun, count).serialize()
        if len(row) > MAXIMUM_LONE_ROW_BYTES:
            raise invalid_file(f"records[{before + begun}]", "is larger than 8 MiB")
        yield row, count
        begun += count


def _parts(batch: Any, schema: Any) -> Iterator[Any]:  # noqa: ANN401  # as above
    """The batch in parts that may be laid out anew in bounded memory; whole, where nothing has to be."""
    if not batch.num_rows or [_stored(values).type for values in batch.columns] == schema.types:
        yield batch
        return
    width = batch.nbytes // batch.num_rows + 1 + sum(map(_longest_entry, batch.columns))
    most = max(1, min(_LAID_OUT_RECORDS, _LAID_OUT_BYTES // width))
    if most > MAXIMUM_ROW_RECORDS:
        most -= most % MAXIMUM_ROW_RECORDS  # so that rows stay full
    for begun in range(0, batch.num_rows, most):
        yield batch.slice(begun, most)


def _longest_entry(values: Any) -> int:  # noqa: ANN401  # as above
    """The most bytes that a record has of a dictionary, which the batch holds once and its records name."""
    if not kinds.is_dictionary(values.type):
        return 0
    entries = values.dictionary
    if not (_is_text(entries.type) or kinds.is_binary(entries.type) or kinds.is_large_binary(entries.type)):
        return 0
    return pc.max(pc.binary_length(entries.cast(pa.large_binary()))).as_py() or 0


def _cast(batch: Any, columns: tuple[Column, ...], schema: Any) -> Any:  # noqa: ANN401
    """The batch in the layout that the columns declare."""
    arrays = []
    for column, field, values in zip(columns, schema, batch.columns, strict=True):
        try:
            arrays.append(_laid_out(values, column, field.type))
        except (pa.ArrowException, TypeError, ValueError, msgspec.MsgspecError):
            raise invalid_file(f"columns.{column.name}", f"cannot be written as {column.type}") from None
    return pa.record_batch(arrays, schema=schema)


def _laid_out(values: Any, column: Column, target: Any) -> Any:  # noqa: ANN401
    values = _stored(values)
    if values.type == target:
        return values
    if kinds.is_nested(values.type):
        # A slice of lists refers to the elements of all; joined with nothing, it holds its own.
        values = pa.concat_arrays([values, values.slice(0, 0)])
    if column.type == "json" and not _is_text(values.type):
        texts = [None if value is None else msgspec.json.encode(value).decode() for value in values.to_pylist()]
        return pa.array(texts, target)
    if kinds.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(target)


def _stored(values: Any) -> Any:  # noqa: ANN401  # as above
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _is_text(kind: Any) -> bool:  # noqa: ANN401
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _inferred(field: Any, place: int, declared: object) -> Column:  # noqa: ANN401
    """The column that holds what Arrow's field holds, or the declared type."""
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    said: dict[str, object] | None = None if declared is None else {"type": declared}
    if kinds.is_integer(kind):
        said = {"type": "integer", "storage": "int64" if kind == pa.uint64() else str(kind)}
    elif kinds.is_floating(kind):
        said = {"type": "number", "storage": _float(kind)}
    elif kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        said = _vector(kind.value_type)
    else:
        simple = next((name for accepts, name in _SIMPLE if accepts(kind)), None)
        said = said if simple is None else {"type": simple}
    if said is None:
        text = f"is {kind}, which no type of ours holds: declare it as text, number or json, or leave it out"
        raise invalid_file(f"columns.{field.name}", text)
    return named_column(field.name, place, nullable=field.nullable, **said)


_SIMPLE: Final = (
    (_is_text, "text"),
    (kinds.is_boolean, "boolean"),
    (kinds.is_binary, "bytes"),
    (kinds.is_large_binary, "bytes"),
    (kinds.is_fixed_size_binary, "bytes"),
    (kinds.is_timestamp, "timestamp"),
    (kinds.is_date, "timestamp"),
    (kinds.is_null, "text"),
    (kinds.is_nested, "json"),
)


def _float(kind: Any) -> str:  # noqa: ANN401
    return "float64" if kind == pa.float64() else "float32"


def _vector(element: Any) -> dict[str, object]:  # noqa: ANN401
    if kinds.is_floating(element):
        return {"type": "vector", "storage": _float(element)}
    if kinds.is_integer(element):
        return {"type": "vector", "storage": "int64" if element == pa.uint64() else str(element)}
    return {"type": "json"}
