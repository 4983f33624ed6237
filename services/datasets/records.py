"""Records and their schema: splits a chunk into the rows that are stored, and checks every record in them.

In CSV and JSON Lines a row is a record, which a line feed ends: no header line.
In Arrow it is a batch of records. Texts in errors are ours; what a record holds
never leaves the checks in one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from casemate.errors import FieldViolation, InvalidRequest, Reason
from casemate.signing.framing import join_rows
from services.datasets.bad_records import BadRecord
from services.datasets.csv_records import CsvCheck, split_lines
from services.datasets.json_records import JsonCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.signing.columns import Column
    from casemate.signing.framing import Format


class RecordCheck(Protocol):
    """Checks rows of one format against one schema; made once for an upload."""

    def require(self, records: Sequence[Any], *, first_record: int) -> int:
        """Returns how many records the rows hold, if every one fits the columns.

        Args:
            records: rows as `split_records` gives them.
            first_record: number of the first record within the version, from 0.

        Raises:
            InvalidRequest: RECORD_INVALID, naming the first bad records as `records[<number>]`.
        """
        ...


def record_check(encoding: Format, schema: Sequence[Column]) -> RecordCheck:
    """The check of a manifest's format and columns."""
    if encoding == "arrow":
        # Only services that take Arrow pay for its forty megabytes.
        from services.datasets.arrow_records import ArrowCheck  # noqa: PLC0415

        return ArrowCheck(schema)
    return CsvCheck(schema) if encoding == "csv" else JsonCheck(schema)


def split_records(
    data: bytes | memoryview, *, field: str, encoding: Format = "jsonl"
) -> list[bytes] | list[memoryview]:
    """The rows of a chunk: records without their line feeds, or messages of Arrow, which lie in `data`.

    Raises:
        InvalidRequest: RECORD_INVALID, the chunk does not end at a record boundary.
    """
    if encoding == "arrow":
        from services.datasets.arrow_records import split_messages  # noqa: PLC0415

        try:
            return split_messages(data)
        except BadRecord as bad:
            raise _no_boundary(field, bad.text) from None
    text = bytes(data)
    if not text.endswith(b"\n"):
        raise _no_boundary(field, "does not end with a line feed")
    return split_lines(text) if encoding == "csv" else text[:-1].split(b"\n")


def join_records(records: Sequence[bytes], *, encoding: Format = "jsonl") -> bytes:
    """The chunk that `split_records` came from."""
    return join_rows(records, encoding=encoding)


def require_schema(records: Sequence[bytes], *, encoding: Format, schema: Sequence[Column], first_ordinal: int) -> None:
    """Checks rows against columns once; see `RecordCheck.require`."""
    record_check(encoding, schema).require(records, first_record=first_ordinal)


def _no_boundary(field: str, text: str) -> InvalidRequest:
    return InvalidRequest(
        "the chunk does not end at a record boundary",
        reason=Reason.RECORD_INVALID,
        violations=(FieldViolation(field, text),),
    )
