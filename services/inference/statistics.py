"""Counts and durations of one loaded version, as ModelStatistics and the metrics report them.

Every call that reached the model's tensors is counted once, as a success or as
a failure, and every run once; nothing is estimated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_EXACT_SIZES = 128
_CALLS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True, slots=True)
class Duration:
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The runs of one size."""

    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class Counts:
    """A consistent reading.

    Attributes:
        inferences: rows predicted.
        executions: runs of the model.
        last_inference_ms: wall clock of the last success, milliseconds since 1970; 0 for never.
        failures: failed calls by reason.
        batches: runs by their rows; above 128 by the next power of two.
        shed: calls whose work was never begun, by reason: `queue`, `predicted`, `deadline`, `cancelled`,
            `withdrawn`.
    """

    inferences: int = 0
    executions: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    failures: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    batches: Mapping[int, BatchCounts] = field(default_factory=lambda: MappingProxyType({}))
    shed: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Statistics:
    """Counts of one loaded version; safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inferences = self._executions = self._last_ms = 0
        self._success = self._fail = 0
        # Sums by part, in the order of `_CALLS`; plain integers, because this runs at every call.
        self._ns = [0] * len(_CALLS)
        self._failures: dict[str, int] = {}
        self._batches: dict[int, list[int]] = {}
        self._shed: dict[str, int] = {}

    @property
    def current(self) -> Counts:
        """All counts as of one moment."""
        with self._lock:
            done, ns = self._success, tuple(self._ns)
            return Counts(
                inferences=self._inferences,
                executions=self._executions,
                last_inference_ms=self._last_ms,
                success=Duration(done, ns[0]),
                fail=Duration(self._fail, ns[1]),
                queue=Duration(done, ns[2]),
                compute_input=Duration(done, ns[3]),
                compute_infer=Duration(done, ns[4]),
                compute_output=Duration(done, ns[5]),
                failures=MappingProxyType(dict(self._failures)),
                batches=MappingProxyType({rows: _batch(sums) for rows, sums in sorted(self._batches.items())}),
                shed=MappingProxyType(dict(self._shed)),
            )

    def executed(self, *, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one run of the model, shared or not."""
        size = rows if rows <= _EXACT_SIZES else 1 << (rows - 1).bit_length()  # clients choose rows: bounded
        with self._lock:
            self._executions += 1
            sums = self._batches.get(size)
            if sums is None:
                sums = self._batches[size] = [0, 0, 0, 0]
            sums[0] += 1
            sums[1] += input_ns
            sums[2] += infer_ns
            sums[3] += output_ns

    def succeeded(
        self, *, rows: int, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Counts one answered call; a call that shared a run took as long as the whole run."""
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            self._inferences += rows
            self._success += 1
            self._last_ms = now_ms
            ns = self._ns
            ns[0] += total_ns
            ns[2] += queue_ns
            ns[3] += input_ns
            ns[4] += infer_ns
            ns[5] += output_ns

    def failed(self, ns: int, reason: str) -> None:
        """Counts one refused or failed call that took `ns` nanoseconds."""
        with self._lock:
            self._fail += 1
            self._ns[1] += ns
            self._failures[reason] = self._failures.get(reason, 0) + 1

    def shed(self, reason: str) -> None:
        """Counts one call whose work was not begun."""
        with self._lock:
            self._shed[reason] = self._shed.get(reason, 0) + 1


def _batch(sums: list[int]) -> BatchCounts:
    count = sums[0]
    return BatchCounts(Duration(count, sums[1]), Duration(count, sums[2]), Duration(count, sums[3]))
