"""When what waits for a model will be done: from the runs under way, and how long runs took so far.

Not locked: its owner is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.inference.latency import RunTime

if TYPE_CHECKING:
    from collections.abc import Hashable


class Forecast:
    """The runs of one model, under way and to come.

    Args:
        instances: runs at once.
        max_rows: most rows in a run that requests share; None: they share none.
    """

    def __init__(self, *, instances: int, max_rows: int | None) -> None:
        self._instances = instances
        self._max_rows = max_rows
        self._run_time = RunTime()
        self._runs: dict[Hashable, tuple[float, float]] = {}

    def began(self, run: Hashable, *, at: float, rows: int) -> None:
        """A run of so many rows is under way since then."""
        self._runs[run] = (at, at + self._run_time.expect(rows))

    def ended(self, run: Hashable, *, at: float, rows: int) -> None:
        """It is over; `rows` is 0 where nothing was run."""
        began = self._runs.pop(run, None)
        if rows and began is not None:
            self._run_time.learn(rows, at - began[0])

    def run_time(self, rows: int) -> float:
        """Seconds that a run of so many rows will take."""
        return self._run_time.expect(rows)

    def until_done(self, *, requests: int, rows: int, now: float, merges: bool) -> float:
        """Seconds until so many requests, of so many rows together, are done, if they are all that waits."""
        until_free = max(0.0, min((run[1] for run in self._runs.values()), default=now) - now)
        if merges and self._max_rows is not None:
            full, rest = divmod(rows, self._max_rows)
            work = full * self._run_time.expect(self._max_rows) + (self._run_time.expect(rest) if rest else 0)
            return until_free + work / min(self._instances, full + 1)
        work = requests * self._run_time.expect(max(1, rows // requests))
        return until_free + work / min(self._instances, requests)
