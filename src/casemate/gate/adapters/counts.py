"""What the gate decides, as metrics.

If this fails: dashboards are silent about refusals. The audit still has each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.transport.metrics import Metrics


class GateCounts:
    """Counts decisions in `calls_total`, `denied_total` and `token_cache_total`.

    It is a `GateObserver`; its `looked_up` is a `CacheObserver`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def denied(self, reason: str) -> None:
        """One call was refused for this reason."""
        self._metrics.increment("denied_total", reason=reason)

    def finished(self, method: str, code: str) -> None:
        """One admitted call ended with this status."""
        self._metrics.increment("calls_total", method=method, code=code)

    def looked_up(self, outcome: str) -> None:
        """One token was looked up in the cache."""
        self._metrics.increment("token_cache_total", outcome=outcome)
