"""Moments that a service says. Protobuf carries more than a date can be, and raises what is no error of ours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from casemate.errors import FieldViolation, StoredDataUnreadable

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp


def parse_timestamp(said: Timestamp, field: str) -> datetime:
    """The moment, in UTC; 1970 where it was not set.

    Raises:
        StoredDataUnreadable: it is outside the years 1 to 9999; names the field.
    """
    try:
        return said.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violation = FieldViolation(field, "is not within the years 1 to 9999")
        raise StoredDataUnreadable(f"{field} is not within the years 1 to 9999", violations=(violation,)) from None
