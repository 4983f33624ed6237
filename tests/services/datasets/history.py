"""What suppliers saw while something was killed again and again, and what must hold of it afterwards.

An operation ends in one of three ways. *Done*: it was acknowledged, and must hold for
ever. *Failed*: it was refused by a status that says so, and must have had no effect;
under kills alone nothing may fail. *Unknown*: the answer was lost; it may have happened,
whole, or not at all, and asking again finds out which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from casemate.errors import CasemateError, Code

LOST = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL})


class Outcome(StrEnum):
    """How an operation ended."""

    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


def outcome_of(error: CasemateError) -> Outcome:
    """What an error tells: only what says that the answer was lost leaves it unknown."""
    return Outcome.UNKNOWN if error.code in LOST - {Code.INTERNAL} else Outcome.FAILED


@dataclass
class Attempt:
    """One upload as its supplier saw it."""

    dataset: str
    version: int
    envelope: bytes = field(repr=False)
    chunks: tuple[bytes, ...] = field(repr=False)
    acknowledged: int = 0
    finish: Outcome | None = None

    @property
    def size(self) -> int:
        return sum(map(len, self.chunks))

    def boundaries(self) -> set[int]:
        """The offsets at which a chunk begins, and the end."""
        found, offset = {0}, 0
        for chunk in self.chunks:
            offset += len(chunk)
            found.add(offset)
        return found


@dataclass
class Stored:
    """What the database has of one upload, read as its superuser."""

    state: str
    next_offset: int
    next_batch: int
    next_ordinal: int
    batches: int
    rows: int
    promotions: int
    """Entries of the log that say this version was promoted."""


@dataclass
class History:
    """All attempts, and counts of how operations ended."""

    attempts: list[Attempt] = field(default_factory=list)
    counts: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    problems: list[str] = field(default_factory=list)

    def note(self, outcome: Outcome) -> None:
        self.counts[outcome] += 1

    def check(self, attempt: Attempt, stored: Stored | None, read: bytes | None) -> None:
        """Holds one attempt against what is stored and what a reader gets (None: not found)."""
        name = f"{attempt.dataset}/{attempt.version}"
        whole = b"".join(attempt.chunks)
        if stored is None:
            if attempt.acknowledged or attempt.finish is Outcome.DONE:
                self.problems.append(f"{name}: acknowledged, and gone")
            return
        if stored.next_offset < attempt.acknowledged:
            self.problems.append(f"{name}: {attempt.acknowledged} acknowledged, {stored.next_offset} stored")
        if stored.next_offset not in attempt.boundaries():
            self.problems.append(f"{name}: offset {stored.next_offset} is inside a chunk")
        if (stored.batches, stored.rows) != (stored.next_batch, stored.next_ordinal):
            self.problems.append(f"{name}: rows, headers and offset are not of one moment")
        promoted = stored.state == "promoted"
        if promoted != (stored.promotions == 1) or stored.promotions > 1:
            self.problems.append(f"{name}: {stored.state} and {stored.promotions} promotions in the log")
        if attempt.finish is Outcome.DONE and not promoted:
            self.problems.append(f"{name}: promotion acknowledged, and {stored.state}")
        if promoted != (read is not None):
            self.problems.append(f"{name}: {stored.state}, and {'readable' if read is not None else 'not readable'}")
        if read is not None and read != whole:
            self.problems.append(f"{name}: other bytes than were pushed")
