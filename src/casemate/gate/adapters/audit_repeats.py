"""Denials that repeat, told once with a count.

The first of a kind is written as it comes. Those that follow within a second are
counted, and told by one line at its end. A flood of refusals then costs lines by
the second and not by the call.

If this fails: the audit grows as fast as an attacker calls.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from casemate.gate.adapters.audit_lines import members_of

if TYPE_CHECKING:
    from casemate.gate.core.audit import AuditEvent

WINDOW_S: Final = 1.0
"""Seconds for which denials of one kind are counted."""
MOST_IDS: Final = 32
"""Request ids that a line of repeats names; the count tells of the rest."""
MOST_OF_ONE: Final = 32
"""Kinds told apart in one window that differ only by what their caller chose: a method's name or a resource's."""
_MOST_KINDS: Final = 1024

_Kind: TypeAlias = "tuple[str | None, ...]"


@dataclass(slots=True)
class _Repeats:
    until: float
    count: int = 0
    since: str = ""
    last: AuditEvent | None = None
    ids: list[str] = field(default_factory=list)


class Repeats:
    """The kinds of denial that were told lately. For one thread."""

    def __init__(self, *, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._kinds: dict[_Kind, _Repeats] = {}
        self._of_one: Counter[_Kind] = Counter()

    def __len__(self) -> int:
        """Events that are counted and not told yet."""
        return sum(each.count for each in self._kinds.values())

    def take(self, event: AuditEvent, *, monotonic: float) -> list[dict[str, Any]]:
        """Takes a denial; what is to be written for it now."""
        kind = self._kind(event)
        known = self._kinds.get(kind)
        if known is None:
            told = self.due(monotonic=None) if len(self._kinds) >= _MOST_KINDS else []
            self._kinds[kind] = _Repeats(until=monotonic + self._window_s)
            self._of_one[kind[:-2]] += 1
            return [*told, members_of(event)]
        if not known.count:
            known.since = event.at.isoformat()
        known.count += 1
        known.last = event
        if len(known.ids) < MOST_IDS:
            known.ids.append(event.request_id)
        return []

    def due(self, *, monotonic: float | None) -> list[dict[str, Any]]:
        """What is to be written of kinds whose second is over; of all kinds if no time is given."""
        told = []
        for kind, known in list(self._kinds.items()):
            if monotonic is not None and monotonic < known.until:
                continue
            del self._kinds[kind]
            self._of_one[kind[:-2]] -= 1
            if not self._of_one[kind[:-2]]:
                del self._of_one[kind[:-2]]
            if known.last is not None:
                line = {**members_of(known.last), "count": known.count, "since": known.since, "request_ids": known.ids}
                told.append(line)
        return told

    def _kind(self, event: AuditEvent) -> _Kind:
        """What is counted together. Its last two are what the caller chose, who could choose a million."""
        one: _Kind = (event.reason, event.tenant, event.client_id, event.spiffe_id)
        if event.tenant is None and event.spiffe_id is None:
            return (*one, None, None)
        kind = (*one, event.method, event.resource)
        return kind if kind in self._kinds or self._of_one[one] < MOST_OF_ONE else (*one, None, None)
