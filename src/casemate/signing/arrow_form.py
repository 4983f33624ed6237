"""The Arrow schema that columns declare; needs pyarrow (the extra `formats`).

A row of a version in Arrow carries no schema: reader and writer both take it from
here, so that no supplier decides by bytes how a reader's memory is laid out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from casemate.signing.columns import STORAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casemate.signing.columns import Column

_PLAIN = {
    "text": pa.utf8(),
    "boolean": pa.bool_(),
    "bytes": pa.binary(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "json": pa.utf8(),
}


def arrow_type(column: Column) -> Any:  # noqa: ANN401  # pyarrow has no types
    """The Arrow type of a column's values."""
    if column.type not in STORAGES:
        return _PLAIN[column.type]
    width = pa.type_for_alias(column.storage or STORAGES[column.type][0])
    return pa.list_(width) if column.type == "vector" else width


def arrow_schema(columns: Sequence[Column]) -> Any:  # noqa: ANN401  # as above
    """The Arrow schema of a version, without metadata."""
    return pa.schema([pa.field(column.name, arrow_type(column), nullable=column.nullable) for column in columns])


def arrow_stream(rows: Iterable[bytes], columns: Sequence[Column]) -> Iterable[bytes]:
    """The pieces of an Arrow IPC stream that holds these rows as they were signed."""
    yield arrow_schema(columns).serialize().to_pybytes()
    yield from rows
    yield b"\xff\xff\xff\xff\x00\x00\x00\x00"  # end of stream
