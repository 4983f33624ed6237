"""How long a run of n rows takes: a·n + b, learnt from the runs themselves.

Least squares over past runs, each counting a little less with every new one, so
that a machine that slows down is believed within some dozens of runs. Not
locked: its owner is.
"""

from __future__ import annotations

_MEMORY = 0.97
_ENOUGH = 5


class RunTime:
    """The expected duration of runs, in seconds."""

    def __init__(self) -> None:
        self._seen = 0
        self._weight = self._rows = self._seconds = self._rows_rows = self._rows_seconds = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """One run of so many rows took so long."""
        self._seen += 1
        self._weight = self._weight * _MEMORY + 1
        self._rows = self._rows * _MEMORY + rows
        self._seconds = self._seconds * _MEMORY + seconds
        self._rows_rows = self._rows_rows * _MEMORY + rows * rows
        self._rows_seconds = self._rows_seconds * _MEMORY + rows * seconds

    def expect(self, rows: int) -> float:
        """How long a run of so many rows will take; 0 while too few were seen to say."""
        if self._seen < _ENOUGH:
            return 0.0
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        spread = self._rows_rows / self._weight - mean_rows * mean_rows
        slope = 0.0
        if spread > 1e-9:
            slope = max(0.0, (self._rows_seconds / self._weight - mean_rows * mean_seconds) / spread)
        return max(0.0, mean_seconds + slope * (rows - mean_rows))
