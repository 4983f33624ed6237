"""Requests on their way through a batcher: what they bring, what they want, where they are."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.errors import Exhausted, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.inference.statistics import Statistics
    from services.inference.tensors import Array

QUEUED, LEADS, TAKEN, DONE = range(4)
_LEAST_RETRY = timedelta(milliseconds=1)
_LOGGER = logging.getLogger(__name__)


class CallerLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Terms:
    """For whom a request runs, and until when.

    Attributes:
        tenant: whose rows may share a run.
        caller: who takes turns with the tenant's other callers.
        ends_at: when the answer is no longer wanted, in seconds of the monotonic clock.
        priority: as the request asks; 0 for no wish.
        on_leave: has a function called when the caller goes; False when it has gone already.
    """

    tenant: str
    caller: str
    ends_at: float
    priority: int = 0
    on_leave: Callable[[Callable[[], None]], bool] = lambda _gone: True


@dataclass(frozen=True, slots=True)
class Later:
    """How a request is answered for which no thread waits.

    Attributes:
        done: takes the request, answered or with its error: once, from any thread, under no lock. Waits for nobody.
        spawn: gives work a thread; raises RuntimeError when none is left.
    """

    done: Callable[[Job], object]
    spawn: Callable[[Callable[[], object]], object]


@dataclass(frozen=True, slots=True)
class Ran:
    """All outputs of one request, and where its time went."""

    outputs: Mapping[str, Array]
    queue_ns: int
    infer_ns: int


@dataclass(slots=True, eq=False)
class Job:
    """One request. Guarded by its batcher's lock until it is taken; then its leader's.

    `shape` is what it must have in common with others to share a run; None: it shares none.
    `later` is None while a thread waits at `wake` for it.
    """

    inputs: Mapping[str, Array]
    rows: int
    shape: tuple[object, ...] | None
    tenant: str
    caller: str
    priority: int
    ends_at: float
    queued_at: float
    statistics: Statistics
    later: Later | None = None
    wake: threading.Lock = field(default_factory=threading.Lock)
    state: int = QUEUED
    left: bool = False
    led_at: float = 0.0
    mark: bytes = b""
    outputs: Mapping[str, Array] | None = None
    error: Exception | None = None
    queue_ns: int = 0
    infer_ns: int = 0

    def ran(self) -> Ran:
        """What came of it; to be asked once, when it is done.

        Raises:
            Exception: what it ended with, if not with an answer.
        """
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it knows this frame: a ring would keep the call, and its place at the peer's connection
        if self.outputs is None:
            raise InternalError("a request left the batcher without an answer")
        return Ran(self.outputs, self.queue_ns, self.infer_ns)

    def tell(self) -> None:
        """Has it answered, if no thread waits for it, or wakes that thread; under no lock. Raises nothing."""
        later, self.later = self.later, None
        if later is None:
            self.wake.release()
            return
        try:
            later.done(self)
        except BaseException:
            _LOGGER.exception("an answer could not be given")  # of this one; the others' are next


def joins(leader: Job, now: float, most: int, job: Job) -> bool:
    """Whether a queued job may share the leader's run; what has expired is taken as well, to be ended."""
    return job.ends_at <= now or (job.rows <= most and job.shape is not None and job.shape == leader.shape)


def shape_of(inputs: Mapping[str, Array], rows: int) -> tuple[object, ...] | None:
    """What requests must have in common to share a run; None for one that shares none."""
    if any(array.ndim == 0 or array.shape[0] != rows for array in inputs.values()):
        return None
    return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))


def exhausted(detail: str, seconds: float) -> Exhausted:
    """A refusal that says when to come again."""
    # In whole milliseconds: what is said often is then often the same, and spelled once.
    return Exhausted(detail, retry_after=max(_LEAST_RETRY, timedelta(milliseconds=round(seconds * 1000))))
