"""How a chunk is refused for its records: the first bad ones by number, never by content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_NAMED: Final = 5
"""Bad records of one chunk that a refusal names; after them nothing more is looked for."""


class BadRecord(ValueError):
    """A record that does not fit; carries constant text, and the column if one is to blame."""

    def __init__(self, text: str, column: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.column = column


def refuse(found: Sequence[tuple[int, BadRecord]]) -> InvalidRequest:
    """The refusal of a chunk with these bad records, each with its number within the version.

    Raised by the caller `from None`: a cause would hold what the record holds.
    """
    first, bad = found[0]
    return InvalidRequest(
        f"record {first}: {bad.text}",
        reason=Reason.RECORD_INVALID,
        violations=tuple(
            FieldViolation(f"records[{number}]" + (f".{each.column}" if each.column else ""), each.text)
            for number, each in found
        ),
    )
