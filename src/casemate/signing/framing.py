"""How records lie in a chunk: what is hashed, signed and sent is their concatenation.

In CSV and JSON Lines a row is one record, and a line feed ends it. In Arrow a row
is one encapsulated IPC message: a record batch, which says itself where it ends.
The schema's message and the end mark are not signed, as they follow from the columns:
set around the rows of a version they make an Arrow stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Format: TypeAlias = Literal["csv", "jsonl", "arrow"]
"""How the records of a version are written. Parquet is pushed as Arrow."""

MAXIMUM_RECORD_BYTES: Final = 1 << 20
"""Of a record of CSV or JSON Lines, its line feed included."""

MAXIMUM_ROW_RECORDS: Final = 1024
MAXIMUM_ROW_BYTES: Final = 256 * 1024
MAXIMUM_LONE_ROW_BYTES: Final = 8 << 20
"""Of an Arrow row: many records within 256 KiB, or one record alone within 8 MiB (an image, say)."""


def join_rows(rows: Iterable[bytes], *, encoding: Format) -> bytes:
    """The bytes that these rows have in a chunk: what its leaf is the hash of."""
    if encoding == "arrow":
        return b"".join(rows)
    joined = b"\n".join(rows)
    # No rows join to no bytes, not to a line feed; a chunk always has one at least.
    return joined + b"\n"
