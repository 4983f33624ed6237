"""The queue of one model: who leads a run, who shares it, who leaves it without one.

Guarded by its batcher's lock, which a leader gives up for as long as it waits for others.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded, FailedPrecondition
from services.inference.batch_jobs import DONE, LEADS, QUEUED, TAKEN, joins
from services.inference.fair_queue import FairQueue

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from services.inference.batch_jobs import Job
    from services.inference.serving import Batching


class BatchQueue:
    """Requests that wait, and the runs that they make up.

    Args:
        batching: what may share a run; None: each runs alone.
        lock: the batcher's, held at every call.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, batching: Batching | None, *, lock: threading.Lock, now: Callable[[], float]) -> None:
        self._batching = batching
        self._lock = lock
        self._now = now
        self._queue: FairQueue[Job] = FairQueue()
        self._gatherer: tuple[Job, int] | None = None
        self._ended: deque[Job] = deque()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job) -> None:
        """Queues a request; a leader that waits for the last of its rows is woken."""
        job.wake.acquire()
        self._queue.add(job)
        self.rows += job.rows
        if self._gatherer is not None and self.rows >= self._gatherer[1]:
            gatherer, self._gatherer = self._gatherer[0], None
            gatherer.wake.release()

    def leader(self, now: float, run_time: Callable[[int], float]) -> Job | None:
        """Takes out who is next, to lead a run.

        One that would only just miss its deadline makes others miss theirs: it is ended.
        """
        while (job := self._took(self._queue.take(lambda _job: True))) is not None:
            if job.ends_at > now + run_time(job.rows):
                job.state, job.led_at = LEADS, now
                return job
            self._expire(job)
        return None

    def withdraw(self, job: Job, reason: str, error: Exception) -> None:
        """Ends a request, if it is still there."""
        if job.state == QUEUED and self._remove(job):
            job.statistics.shed(reason)
            self.end(job, error)

    def withdraw_all(self) -> None:
        """Ends whoever waits."""
        for job in list(self._queue.items()):
            self.withdraw(job, "withdrawn", withdrawn())

    def displaced_by(self, job: Job) -> Job | None:
        """Takes out who owes its place to a newcomer: see `FairQueue.displaced_by`."""
        return self._took(self._queue.displaced_by(job))

    def end_late(self, now: float) -> float | None:
        """Ends those without a thread whose time is over; when the next one's is."""
        following = None
        for job in [job for job in self._queue.items() if job.later is not None]:
            if job.ends_at <= now:
                self._remove(job)
                self._expire(job)
            elif following is None or job.ends_at < following:
                following = job.ends_at
        return following

    def end(self, job: Job, error: Exception) -> None:
        """Ends a request that was taken out; `tell_ended` is to follow."""
        job.error = error
        job.state = DONE
        if job.later is None:
            job.wake.release()
        else:
            self._ended.append(job)

    def tell_ended(self) -> None:
        """Answers those without a thread that were ended. Never under the lock."""
        while self._ended:
            try:
                job = self._ended.popleft()
            except IndexError:  # another thread was here
                return
            job.tell()

    def gather(self, batch: list[Job]) -> float:
        """Adds to a batch of one whoever may share its run; for how many seconds it waited for others."""
        batching = self._batching
        if batching is None or batch[0].shape is None:
            return 0.0
        self._fill(batch, batching)
        lingered = self._linger(batch, batching)
        self._trim(batch, batching)
        return lingered

    def _remove(self, job: Job) -> bool:
        return self._queue.remove(job) and self._took(job) is not None

    def _expire(self, job: Job) -> None:
        job.statistics.shed("deadline")
        self.end(job, expired())

    def _took(self, job: Job | None) -> Job | None:
        if job is not None:
            self.rows -= job.rows
        return job

    def _fill(self, batch: list[Job], batching: Batching) -> None:
        leader, rows = batch[0], sum(job.rows for job in batch)
        tenant = None if batching.share_between_tenants else leader.tenant
        while rows < batching.max_rows:
            now = self._now()
            job = self._took(self._queue.take(partial(joins, leader, now, batching.max_rows - rows), tenant=tenant))
            if job is None:
                return
            if job.ends_at <= now:
                self._expire(job)
                continue
            job.state = TAKEN
            batch.append(job)
            rows += job.rows

    def _linger(self, batch: list[Job], batching: Batching) -> float:
        """Waits for more, up to the model's window since the leader was queued."""
        leader = batch[0]
        if not batching.window_us or self._gatherer is not None:
            return 0.0
        target = batching.preferred_rows[-1] if batching.preferred_rows else batching.max_rows
        missing, began = target - sum(job.rows for job in batch), self._now()
        left = leader.queued_at + batching.window_us / 1e6 - began
        if missing <= 0 or left <= 0:
            return 0.0
        self._gatherer = (leader, missing)
        self._lock.release()
        try:
            leader.wake.acquire(timeout=left)
        finally:
            self._lock.acquire()
        if self._gatherer is not None and self._gatherer[0] is leader:
            self._gatherer = None
        self._fill(batch, batching)
        return self._now() - began

    def _trim(self, batch: list[Job], batching: Batching) -> None:
        """Cuts the batch to the largest preferred size that its first requests fill exactly."""
        if not batching.preferred_rows:
            return
        preferred, rows, keep = frozenset(batching.preferred_rows), 0, 0
        for count, job in enumerate(batch, start=1):
            rows += job.rows
            if rows in preferred:
                keep = count
        while keep and len(batch) > keep:
            job = batch.pop()
            job.state = QUEUED
            self._queue.put_back(job)
            self.rows += job.rows


def expired() -> DeadlineExceeded:
    """What a request ends with whose time was over before its work began."""
    return DeadlineExceeded("passed in the queue")


def withdrawn() -> FailedPrecondition:
    """What a request ends with whose version was taken out before its work began, as one that comes later does."""
    return FailedPrecondition("released, and not loaded here")
