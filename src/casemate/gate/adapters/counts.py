"""What the gate decides, as metrics.

If this fails: dashboards are silent about refusals. The audit still has each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from casemate.transport.metrics import Metrics

    Count: TypeAlias = Callable[[], None]


class GateCounts:
    """Counts decisions in `calls_total`, `denied_total` and `token_cache_total`.

    It is a `GateObserver`; its `looked_up` is a `CacheObserver`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Finding a counter by its labels costs more than counting. Methods, codes and reasons are few: see `Gate`.
        self._denied: dict[str, Count] = {}
        self._finished: dict[tuple[str, str], Count] = {}
        self._looked_up: dict[str, Count] = {}

    def denied(self, reason: str) -> None:
        """One call was refused for this reason."""
        count = self._denied.get(reason)
        if count is None:
            count = self._denied[reason] = self._metrics.counting("denied_total", reason=reason)
        count()

    def finished(self, method: str, code: str) -> None:
        """One admitted call ended with this status."""
        count = self._finished.get((method, code))
        if count is None:
            count = self._finished[method, code] = self._metrics.counting("calls_total", method=method, code=code)
        count()

    def looked_up(self, outcome: str) -> None:
        """One token was looked up in the cache."""
        count = self._looked_up.get(outcome)
        if count is None:
            count = self._looked_up[outcome] = self._metrics.counting("token_cache_total", outcome=outcome)
        count()
