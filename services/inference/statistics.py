"""Counts and durations of one loaded version, as ModelStatistics reports them.

Every call that reached the model's tensors is counted once, as a success or as
a failure; nothing is estimated.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Duration:
    """How often, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int) -> Duration:
        """One more, of `ns` nanoseconds."""
        return Duration(self.count + 1, self.ns + ns)


@dataclass(frozen=True, slots=True)
class Counts:
    """A consistent reading.

    Attributes:
        inferences: rows predicted.
        executions: runs of the model.
        last_inference_ms: wall clock of the last success, milliseconds since 1970; 0 for never.
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


class Statistics:
    """Counts of one loaded version; safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    @property
    def current(self) -> Counts:
        """All counts as of one moment."""
        with self._lock:
            return self._counts

    def succeeded(self, *, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Counts one answered call. Nothing queues yet, so the queue's share is counted as zero."""
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            old = self._counts
            self._counts = replace(
                old,
                inferences=old.inferences + rows,
                executions=old.executions + 1,
                last_inference_ms=now_ms,
                success=old.success.plus(input_ns + infer_ns + output_ns),
                queue=old.queue.plus(0),
                compute_input=old.compute_input.plus(input_ns),
                compute_infer=old.compute_infer.plus(infer_ns),
                compute_output=old.compute_output.plus(output_ns),
            )

    def failed(self, ns: int) -> None:
        """Counts one refused or failed call that took `ns` nanoseconds."""
        with self._lock:
            self._counts = replace(self._counts, fail=self._counts.fail.plus(ns))
