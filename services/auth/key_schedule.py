"""When token keys change their state: SPIRE's schedule, as a pure function.

The next key is made when half of the active one's life is over and signs from
five sixths of it on. Between the two everybody has long been told of it; and the
old key verifies until the last token that it signed is dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from casemate.gate.core.records import EDDSA
from services.auth.records import TokenKey, TokenKeyState

SEALED: Final = "sealed"
"""Where a key is kept that was made here: in its row, under the key-encryption key."""


class Turn(StrEnum):
    """What happens to a key."""

    PREPARE = "prepare"
    PUBLISH = "publish"
    ACTIVATE = "activate"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change of state; `kid` is empty for a key that is yet to be made."""

    turn: Turn
    kid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySchedule:
    """How long keys live.

    Attributes:
        lifetime: of a key that signs, as the fractions above count it.
        known_before: a key is published at least that long before it signs.
        verified_after: a key verifies that long after it signed last.
        places: KMS keys that are to sign, each after the other, as the setting names them; none
            where keys are made here and sealed.

    Raises:
        ValueError: a key would have to sign before it could be known, or be dead before its tokens.
    """

    lifetime: timedelta = timedelta(days=30)
    known_before: timedelta = timedelta(hours=1)
    verified_after: timedelta = timedelta(minutes=15)
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.known_before > self.lifetime / 3 or self.verified_after > self.lifetime / 2:
            raise ValueError("a key's life is too short for its schedule")

    def prepared_at(self, active: TokenKey) -> datetime:
        """When the successor of an active key is made."""
        return since(active) + self.lifetime / 2

    def activated_at(self, active: TokenKey, successor: TokenKey) -> datetime:
        """When a published successor takes over: as soon as it is known, if the active one is kept elsewhere."""
        if not self.keeps(active):
            return since(successor) + self.known_before
        return max(since(active) + self.lifetime * 5 / 6, since(successor) + self.known_before)

    def keeps(self, key: TokenKey) -> bool:
        """Whether a key is kept where keys are to be kept."""
        return kept_by(key) in (self.places or (SEALED,))

    def next_place(self, keys: Sequence[TokenKey]) -> str | None:
        """Where the next key is to be kept; None while every place has one already, be it a revoked one."""
        if not self.places:
            return SEALED
        taken = {kept_by(key) for key in keys}
        active = next((kept_by(key) for key in _in_state(keys, "active")), "")
        after = self.places.index(active) + 1 if active in self.places else 0
        return next((place for place in self.places[after:] + self.places[:after] if place not in taken), None)


def kept_by(key: TokenKey) -> str:
    """Where a key is kept: `sealed` in its row, or as the setting names a KMS key."""
    return SEALED if key.algorithm == EDDSA else key.sealed_private_key.decode("ascii", "replace")


def next_step(keys: Sequence[TokenKey], *, now: datetime, schedule: KeySchedule) -> Step | None:
    """What is due, one step at a time; None if nothing is. Needs the present, verified keys."""
    for key in _in_state(keys, "retiring"):
        if now >= since(key) + schedule.verified_after:
            return Step(turn=Turn.RETIRE, kid=key.kid)
    for key in _in_state(keys, "prepared"):
        return Step(turn=Turn.PUBLISH, kid=key.kid)
    active = next(_in_state(keys, "active"), None)
    if active is None:
        return None  # nothing is decided without the key that signs: its row may be one that does not verify
    waiting = next(_in_state(keys, "published"), None)
    if waiting is None:
        is_due = now >= schedule.prepared_at(active) or not schedule.keeps(active)
        return Step(turn=Turn.PREPARE) if is_due and schedule.next_place(keys) is not None else None
    return Step(turn=Turn.ACTIVATE, kid=waiting.kid) if now >= schedule.activated_at(active, waiting) else None


def due(key: TokenKey, keys: Sequence[TokenKey], *, schedule: KeySchedule) -> datetime | None:
    """When a key's state changes next by the schedule; None if it does not, or nobody can say yet."""
    active = next(_in_state(keys, "active"), None)
    waiting = next(_in_state(keys, "published"), None)
    match key.state:
        case "retiring":
            return since(key) + schedule.verified_after
        case "published":
            return None if active is None else schedule.activated_at(active, key)
        case "active":
            return None if waiting is None else schedule.activated_at(key, waiting)
        case _:
            return None


def since(key: TokenKey) -> datetime:
    """When a key got its state."""
    return key.changed_at or key.created_at


def _in_state(keys: Sequence[TokenKey], state: TokenKeyState) -> Iterator[TokenKey]:
    return (key for key in keys if key.state == state)
