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

from services.auth.records import TokenKey, TokenKeyState


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

    Raises:
        ValueError: a key would have to sign before it could be known, or be dead before its tokens.
    """

    lifetime: timedelta = timedelta(days=30)
    known_before: timedelta = timedelta(hours=1)
    verified_after: timedelta = timedelta(minutes=15)

    def __post_init__(self) -> None:
        if self.known_before > self.lifetime / 3 or self.verified_after > self.lifetime / 2:
            raise ValueError("a key's life is too short for its schedule")

    def prepared_at(self, active: TokenKey) -> datetime:
        """When the successor of an active key is made."""
        return since(active) + self.lifetime / 2

    def activated_at(self, active: TokenKey, successor: TokenKey) -> datetime:
        """When a published successor takes over."""
        return max(since(active) + self.lifetime * 5 / 6, since(successor) + self.known_before)


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
        return Step(turn=Turn.PREPARE) if now >= schedule.prepared_at(active) else None
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
