"""Runs a model for many callers: a free instance takes a request at once, a busy one takes what has queued.

The thread that brings a request to a free instance runs it itself: nothing is
handed over, nothing waits. While all instances are busy, requests queue, and
their threads sleep. A thread whose run is over makes the next one in the queue
the leader; the leader takes along whatever may share its run, and wakes the
others when their rows are done. So each request costs one wake-up at most.

What runs in less time than a wake-up takes is not queued, where nobody has set a limit: a model that says how many
runs, places or levels it has is held to them however short its runs were, and so is one that computes elsewhere.

Requests leave the queue unstarted when their deadline passes, when their caller
goes, or when a full queue owes the place to a caller that has less in it. A
request that cannot be done in time by the run times seen so far is refused at
once, with the time after which it might.

If this fails: rows of one request answer another. Rows are therefore counted
before they are split; what a shared run cannot answer row by row is run again,
one request at a time.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded, InternalError
from services.inference.batch_jobs import (
    DONE,
    LEADS,
    QUEUED,
    TAKEN,
    CallerLeft,
    Job,
    Ran,
    Terms,
    exhausted,
    joins,
    shape_of,
)
from services.inference.fair_queue import FairQueue
from services.inference.latency import RunTime
from services.inference.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.errors import Exhausted
    from services.inference.board import WorkerBoard
    from services.inference.instance import Instance
    from services.inference.latency import Shapes
    from services.inference.serving import Serving
    from services.inference.statistics import Statistics
    from services.inference.tensors import Array

_SLACK = 1.25
"""A request is queued if there is a quarter more time than it is expected to take: answers have a way to go, requests
had one that the server did not see, and a queue that is full to its deadlines serves everybody too late."""


class Batcher:
    """One loaded model behind its queue; safe from many threads.

    Args:
        instance: computes.
        serving: the model's own configuration.
        instances: runs at once when the model does not say.
        pad_lone_row: a run of one row is made with that row twice. For models whose library
            takes another path for one row, with other last bits: an answer then does not depend
            on who else asked.
        board: where a worker notes what it runs; None outside of workers.
        key: names the model on the board.
        here: it computes in the thread that calls it; False where that thread only waits for another process.
        steady: requests of the same shapes take the same time.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        instance: Instance,
        serving: Serving,
        *,
        instances: int = 1,
        pad_lone_row: bool = False,
        board: WorkerBoard | None = None,
        key: bytes = b"",
        here: bool = True,
        steady: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batching = serving.batching
        self._levels = serving.priority_levels
        self._limit = serving.queue
        self._free = self._instances = serving.instances or instances
        self._runner = Runs(instance, merges=serving.batching is not None, pad_lone_row=pad_lone_row)
        self._board, self._key = board, key
        self._now = now
        self._lock = threading.Lock()
        self._queue: FairQueue[Job] = FairQueue()
        self._queued_rows = 0
        self._runs: dict[int, tuple[float, float]] = {}
        self._run_time = RunTime()
        self._gatherer: tuple[Job, int] | None = None
        self._lingers = self._batching is not None and self._batching.window_us > 0
        self._may_be_light = here and not serving.limited
        # Never what would be queued, or noted on the board.
        self._steady = steady and self._may_be_light and not self._runner.merges and board is None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Runs under way."""
        return len(self._runs)

    def oldest_run(self) -> float:
        """For how many seconds the oldest run has been under way; 0 when none is."""
        began = min((run[0] for run in tuple(self._runs.values())), default=None)
        return 0.0 if began is None else self._now() - began

    def at_once(self, shapes: Shapes) -> bool:
        """Whether a request of these shapes is neither queued nor takes long, so that it needs no thread of its own."""
        return self._steady and self._runner.lightness.knows_short(shapes)

    def refusal(self, ends_at: float, statistics: Statistics) -> Exhausted | None:
        """Why no request could be queued that is to end by then, counted; None: one could. Waits for nothing."""
        now = self._now()
        with self._lock:
            if self._free > 0:
                return None
            expected = self._expect(1, now)
        if now + expected * _SLACK <= ends_at:
            return None
        statistics.shed("predicted")
        return exhausted("would not be done before its deadline", now + expected * _SLACK - ends_at)

    def run_here(self, inputs: Mapping[str, Array], *, rows: int, statistics: Statistics) -> Ran:
        """All outputs of a request of which `at_once` holds, from a run of its own in this thread, not queued.

        Raises:
            InvalidRequest: the values do not fit the model.
            InternalError: the model failed.
        """
        job = Job(inputs, rows, None, "", "", 0, 0.0, 0.0, statistics)
        self._runner.alone(job)
        if job.outputs is None:
            raise InternalError("a request left the batcher without an answer")
        return Ran(job.outputs, 0, job.infer_ns)

    def run(self, inputs: Mapping[str, Array], *, rows: int, terms: Terms, statistics: Statistics) -> Ran:
        """All outputs of the request, from a run of its own or one that it shared.

        Raises:
            Exhausted: the queue is full, or the deadline cannot be kept; says when to come again.
            DeadlineExceeded: it passed before the work began.
            CallerLeft: the caller went before the work began.
            InvalidRequest: the values do not fit the model.
            InternalError: the model failed.
        """
        now = self._now()
        if terms.ends_at <= now:
            statistics.shed("deadline")
            raise DeadlineExceeded("passed before the request was queued")
        job = Job(
            inputs,
            rows,
            shape_of(inputs, rows) if self._runner.merges else None,
            terms.tenant,
            terms.caller,
            self._priority(terms.priority),
            terms.ends_at,
            now,
            statistics,
        )
        if self._board is not None:
            job.mark, alone = self._board.mark(inputs, self._key + terms.tenant.encode())
            job.shape = None if alone else job.shape
        with self._lock:
            idle = self._free > 0 or (
                self._may_be_light and not self._runner.merges and self._runner.lightness.covers(inputs)
            )
            if idle:
                self._free -= 1
                self._begin(job, now, rows)
            else:
                self._enqueue(job, now)
        if idle or self._wait(job, terms):
            self._lead(job)
        if job.error is not None:
            raise job.error
        if job.outputs is None:
            raise InternalError("a request left the batcher without an answer")
        return Ran(job.outputs, job.queue_ns, job.infer_ns)

    def _priority(self, wish: int) -> int:
        return wish - 1 if 1 <= wish <= self._levels else (self._levels - 1) // 2

    # Queueing. All under the lock but `_wait`.

    def _enqueue(self, job: Job, now: float) -> None:
        expected = self._expect(job.rows, now)
        if now + expected * _SLACK > job.ends_at:
            job.statistics.shed("predicted")
            raise exhausted("would not be done before its deadline", now + expected * _SLACK - job.ends_at)
        if len(self._queue) >= self._limit:
            displaced = self._queue.displaced_by(job)
            (displaced or job).statistics.shed("queue")
            if displaced is None:
                raise exhausted("the model's queue is full", expected)
            self._queued_rows -= displaced.rows
            self._settle(displaced, exhausted("gave its place in the queue to a caller with less in it", expected))
        job.wake.acquire()
        self._queue.add(job)
        self._queued_rows += job.rows
        if self._gatherer is not None and self._queued_rows >= self._gatherer[1]:
            gatherer, self._gatherer = self._gatherer[0], None
            gatherer.wake.release()

    def _wait(self, job: Job, terms: Terms) -> bool:
        """Sleeps until the job is done; True when it is to lead a run instead."""
        if not terms.on_leave(lambda: self._withdraw(job, "cancelled", CallerLeft())):
            self._withdraw(job, "cancelled", CallerLeft())
        if not job.wake.acquire(timeout=max(0.0, job.ends_at - self._now())):
            self._withdraw(job, "deadline", DeadlineExceeded("passed in the queue"))
            job.wake.acquire()  # withdrawn, or taken in the last moment and soon done
        return job.state == LEADS

    def _withdraw(self, job: Job, reason: str, error: Exception) -> None:
        """Takes a job out of the queue, if it is still there. From any thread."""
        with self._lock:
            job.left = True
            if job.state == QUEUED and self._queue.remove(job):
                self._queued_rows -= job.rows
                job.statistics.shed(reason)
                self._settle(job, error)

    def _settle(self, job: Job, error: Exception) -> None:
        job.error = error
        job.state = DONE
        job.wake.release()

    def _expect(self, more: int, now: float) -> float:
        """Seconds until so many more rows would be done if they were queued now."""
        until_free = max(0.0, min((run[1] for run in self._runs.values()), default=now) - now)
        ahead = len(self._queue)
        rows = self._queued_rows + more
        if self._runner.merges and self._batching is not None:
            full, rest = divmod(rows, self._batching.max_rows)
            work = full * self._run_time.expect(self._batching.max_rows) + (self._run_time.expect(rest) if rest else 0)
            return until_free + work / min(self._instances, full + 1)
        runs = ahead + 1
        return until_free + runs * self._run_time.expect(max(1, rows // runs)) / min(self._instances, runs)

    # Running. One thread per run.

    def _lead(self, leader: Job) -> None:
        """Runs the leader and whoever may come along; wakes them, and the leader of the next run before them."""
        batch: list[Job] = [leader]
        rows = 0
        try:
            batch = self._gather(leader) if leader.state == LEADS else batch
            rows = sum(job.rows for job in batch)
            if batch:
                self._execute(batch)
        finally:
            self._hand_on(leader, rows)
            for job in batch:
                job.state = DONE
                if job is not leader:
                    job.wake.release()

    def _gather(self, leader: Job) -> list[Job]:
        batch = [leader]
        with self._lock:
            if self._batching is not None and leader.shape is not None and self._runner.merges:
                self._fill(batch, self._batching.max_rows)
                self._linger(batch)
                self._trim(batch)
            now = self._now()
            self._begin(leader, now, sum(job.rows for job in batch))
        for job in batch:
            job.queue_ns = int((now - job.queued_at) * 1e9)
        if leader.left or leader.ends_at <= now:
            batch.remove(leader)
            leader.error = CallerLeft() if leader.ends_at > now else DeadlineExceeded("passed in the queue")
            leader.statistics.shed("cancelled" if leader.ends_at > now else "deadline")
        return batch

    def _fill(self, batch: list[Job], limit: int) -> None:
        leader, rows = batch[0], sum(job.rows for job in batch)
        tenant = None if self._batching is not None and self._batching.share_between_tenants else leader.tenant
        while rows < limit:
            now, most = self._now(), limit - rows
            job = self._queue.take(partial(joins, leader, now, most), tenant=tenant)
            if job is None:
                return
            self._queued_rows -= job.rows
            if job.ends_at <= now:
                self._expire(job)
                continue
            job.state = TAKEN
            batch.append(job)
            rows += job.rows

    def _linger(self, batch: list[Job]) -> None:
        """Waits for more, up to the model's window since the leader was queued."""
        batching, leader = self._batching, batch[0]
        if batching is None or not batching.window_us or self._gatherer is not None:
            return
        target = batching.preferred_rows[-1] if batching.preferred_rows else batching.max_rows
        missing = target - sum(job.rows for job in batch)
        left = leader.queued_at + batching.window_us / 1e6 - self._now()
        if missing <= 0 or left <= 0:
            return
        self._gatherer = (leader, missing)
        self._lock.release()
        try:
            leader.wake.acquire(timeout=left)
        finally:
            self._lock.acquire()
        if self._gatherer is not None and self._gatherer[0] is leader:
            self._gatherer = None
        self._fill(batch, batching.max_rows)

    def _trim(self, batch: list[Job]) -> None:
        """Cuts the batch to the largest preferred size that its first requests fill exactly."""
        if self._batching is None or not self._batching.preferred_rows:
            return
        preferred, rows, keep = frozenset(self._batching.preferred_rows), 0, 0
        for count, job in enumerate(batch, start=1):
            rows += job.rows
            if rows in preferred:
                keep = count
        while keep and len(batch) > keep:
            job = batch.pop()
            job.state = QUEUED
            self._queue.put_back(job)
            self._queued_rows += job.rows

    def _begin(self, leader: Job, now: float, rows: int) -> None:
        # From when it was told to: until a woken thread runs, the instance serves nobody, and predictions must know.
        began = leader.led_at if leader.led_at and not self._lingers else now
        self._runs[id(leader)] = (began, began + self._run_time.expect(rows))

    def _hand_on(self, leader: Job, rows: int) -> None:
        """Ends a run, and makes the next in the queue a leader, or the instance free."""
        now = self._now()
        with self._lock:
            began = self._runs.pop(id(leader), None)
            if rows and began is not None:
                self._run_time.learn(rows, now - began[0])
            job = self._queue.take(lambda _job: True) if self._free >= 0 else None
            while job is not None:
                self._queued_rows -= job.rows
                # One that would only just miss its deadline is work for nothing, and makes the next one miss its own.
                if job.ends_at > now + self._run_time.expect(job.rows):
                    job.led_at = now
                    job.state = LEADS
                    job.wake.release()
                    return
                self._expire(job)
                job = self._queue.take(lambda _job: True)
            self._free += 1

    def _expire(self, job: Job) -> None:
        job.statistics.shed("deadline")
        self._settle(job, DeadlineExceeded("passed in the queue"))

    def _execute(self, batch: list[Job]) -> None:
        board = self._board
        if board is None:
            self._runner.compute(batch)
            return
        places = board.begin([job.mark for job in batch])
        try:
            self._runner.compute(batch)
        finally:
            board.end(places)
