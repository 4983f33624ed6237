"""Proven rows as Arrow, by the columns of the signed manifest and never by guessing. Needs pyarrow.

If this fails: a trainer sees other values than were signed; `records` of the same
reading has the bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import ipc

from casemate.client.csv_files import read_fields
from casemate.errors import StoredDataUnreadable
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.arrow_rows import require_one_batch

if TYPE_CHECKING:
    from casemate.signing.columns import Column, ColumnType
    from casemate.signing.framing import Format


class ArrowBatches:
    """Converts the rows of one version, batch by batch.

    Args:
        columns: of the manifest.
        encoding: the manifest's format.
    """

    def __init__(self, columns: Sequence[Column], *, encoding: Format) -> None:
        self._columns = columns
        self._schema = arrow_schema(columns)
        self._encoding = encoding
        self._values = _csv_values if encoding == "csv" else _json_values

    def __call__(self, rows: Sequence[bytes]) -> Any:  # noqa: ANN401  # pyarrow has no types
        """One `pyarrow.RecordBatch` of these rows.

        Raises:
            StoredDataUnreadable: a value is not of its column's type, which the service was to see to.
        """
        try:
            found = self._of_messages(rows) if self._encoding == "arrow" else self._of_lines(rows)
            for field, values in zip(self._schema, found.columns, strict=True):
                if values.null_count and not field.nullable:
                    raise ValueError("nothing where the schema wants a value")
        except (
            pa.ArrowException,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            OSError,
            EOFError,
            RecursionError,
        ) as error:
            raise StoredDataUnreadable("a proven row does not fit its own schema") from error
        return found

    def _of_messages(self, rows: Sequence[bytes]) -> Any:  # noqa: ANN401  # as above
        if not rows:
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        return pa.concat_batches([self._opened(row) for row in rows])

    def _opened(self, row: bytes) -> Any:  # noqa: ANN401  # as above
        """One row, which is one message: what stands behind it, or in no column of the schema, is not read."""
        require_one_batch(row)
        batch = ipc.read_record_batch(ipc.read_message(row), self._schema)
        # Offsets, lengths and UTF-8: whoever reads the values believes them, and reads where they point.
        batch.validate(full=True)
        return batch

    def _of_lines(self, rows: Sequence[bytes]) -> Any:  # noqa: ANN401  # as above
        values = self._values(rows, self._columns)
        arrays = [pa.array(column, type=field.type) for column, field in zip(values, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def _csv_values(rows: Sequence[bytes], columns: Sequence[Column]) -> list[list[Any]]:
    lines = [read_fields(row) for row in rows]
    if any(len(line) != len(columns) for line in lines):
        raise ValueError("a line of another width")
    return [_of_texts(column, [line[place] for line in lines]) for place, column in enumerate(columns)]


def _of_texts(column: Column, texts: list[str | None]) -> list[Any]:
    read = _FROM_TEXT.get(column.type, str)
    if column.nullable:
        return [None if text is None else read(text) for text in texts]
    return [read(text or "") for text in texts]


def _json_values(rows: Sequence[bytes], columns: Sequence[Column]) -> list[list[Any]]:
    records = [json.loads(row) for row in rows]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("a line that is no object")
    return [_of_json(column, [record.get(column.name) for record in records]) for column in columns]


def _of_json(column: Column, values: list[Any]) -> list[Any]:
    read = _FROM_JSON.get(column.type)
    return values if read is None else [None if value is None else read(value) for value in values]


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.upper())  # RFC 3339 allows a small t and z, Python does not


def _floats(values: list[float]) -> list[float]:
    return [float(value) for value in values]  # Arrow takes no integer that a float would round


def _float(value: float) -> float:
    return float(value)


_FROM_TEXT: dict[ColumnType, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": _boolean,
    "bytes": base64.b64decode,
    "timestamp": _moment,
    "vector": json.loads,
}
_FROM_JSON: dict[ColumnType, Callable[[Any], Any]] = {
    "number": _float,
    "bytes": base64.b64decode,
    "timestamp": _moment,
    "json": _json_text,
    "vector": _floats,
}
