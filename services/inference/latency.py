"""How long a run of n rows takes: a·n + b, learnt from the runs themselves.

Least squares over past runs, each counting a little less with every new one, so
that a machine that slows down is believed within some dozens of runs. Not
locked: its owner is. And whether runs cost less than it takes to queue them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.inference.tensors import Array

LIGHT_NS = 300_000
"""Runs of less CPU time than this need not be queued: a wake-up would cost as much."""

AT_ONCE_NS = 100_000
"""Runs of less than this need no thread of their own: it would take as long to wake one and to come back."""

Shapes = frozenset[tuple[str, tuple[int, ...]]]
"""Names and shapes of a request's tensors."""

_MOST_SHAPES = 64
_FAR_TOO_LONG = 4
_LIGHT_MEMORY = 0.3
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


class Lightness:
    """Whether runs cost less than queueing does, and of which inputs that is known."""

    def __init__(self) -> None:
        self._cpu_ns = 2.0 * LIGHT_NS  # until runs have shown what they cost
        self._largest = -1  # bytes of the largest inputs that were light
        self._by_shapes: dict[Shapes, float] = {}

    def learn(self, cpu_ns: float, inputs: Mapping[str, Array]) -> None:
        """A run of these inputs took so much of its thread's CPU time."""
        self._cpu_ns += _LIGHT_MEMORY * (cpu_ns - self._cpu_ns)
        size = _bytes(inputs)
        self._largest = max(self._largest, size) if cpu_ns < LIGHT_NS else min(self._largest, size - 1)
        shapes = frozenset((name, array.shape) for name, array in inputs.items())
        known = self._by_shapes.get(shapes)
        if known is not None and cpu_ns < _FAR_TOO_LONG * AT_ONCE_NS:
            # One slow run among quick ones was interrupted: without this, those under way would all be given threads.
            cpu_ns = known + _LIGHT_MEMORY * (cpu_ns - known)
        if cpu_ns >= AT_ONCE_NS:
            self._by_shapes.pop(shapes, None)
        elif known is not None or len(self._by_shapes) < _MOST_SHAPES:
            self._by_shapes[shapes] = cpu_ns

    def knows_short(self, shapes: Shapes) -> bool:
        """Whether runs of exactly these shapes were so short lately, on the whole, that they need no thread."""
        return shapes in self._by_shapes

    def covers(self, inputs: Mapping[str, Array]) -> bool:
        """Whether these inputs are no larger than what was light, while runs are: an average says nothing of others."""
        return self._cpu_ns < LIGHT_NS and _bytes(inputs) <= self._largest


def _bytes(inputs: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in inputs.values())
