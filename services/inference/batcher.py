"""Runs a model for many callers: a free instance takes a request at once, a busy one takes what has queued.

The thread that brings a request to a free instance runs it itself: nothing is
handed over, nothing waits. While all instances are busy, requests queue. A thread whose run is over
makes the next one in the queue the leader, and the leader takes along whatever may share its run.

A request waits with a thread or without. With one (`run`), its thread sleeps, and is woken to lead a run or when
its rows are done. Without one (`submit`), whoever has its rows gives the answer, and a thread that led such a
run leads the next. So under load a model is served by as many threads as it has instances, and none is woken.

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

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded, Unavailable
from services.inference.alarm import Alarm
from services.inference.batch_jobs import DONE, LEADS, CallerLeft, Job, Ran, Terms, exhausted, shape_of
from services.inference.batch_queue import BatchQueue, expired, withdrawn
from services.inference.forecast import Forecast
from services.inference.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.errors import Exhausted
    from services.inference.batch_jobs import Later
    from services.inference.board import WorkerBoard
    from services.inference.instance import Instance
    from services.inference.latency import Shapes
    from services.inference.serving import Serving
    from services.inference.statistics import Statistics
    from services.inference.tensors import Array

_SLACK = 1.25
"""A request is queued if there is a quarter more time than it is expected to take: answers have a way to go, requests
had one that the server did not see, and a queue that is full to its deadlines serves everybody too late."""
_RUNS_ON_END = 16
"""Runs that a thread leads one after the other; then it waits its turn among those that other models want."""
_LOOK_S = 0.001
"""Least time between two looks for what has expired in the queue."""
_LOGGER = logging.getLogger(__name__)


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
        batching = serving.batching
        self._levels = serving.priority_levels
        self._limit = serving.queue
        self._free = serving.instances or instances
        self._forecast = Forecast(instances=self._free, max_rows=batching.max_rows if batching is not None else None)
        self._runner = Runs(instance, merges=batching is not None, pad_lone_row=pad_lone_row)
        self._board, self._key = board, key
        self._now = now
        self._lock = threading.Lock()
        self._queue = BatchQueue(batching, lock=self._lock, now=now)
        self._runs: dict[int, float] = {}
        self._withdrawn = False
        self._alarm = Alarm(self._end_late, now=now)
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
        began = min(tuple(self._runs.values()), default=None)
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
        return job.ran()

    def run(self, inputs: Mapping[str, Array], *, rows: int, terms: Terms, statistics: Statistics) -> Ran:
        """All outputs of the request, from a run of its own or one that it shared.

        Raises:
            Exhausted: the queue is full, or the deadline cannot be kept; says when to come again.
            DeadlineExceeded: it passed before the work began.
            CallerLeft: the caller went before the work began.
            InvalidRequest: the values do not fit the model.
            InternalError: the model failed.
        """
        job = self._job(inputs, rows, terms, statistics, None)
        if self._place(job) or self._wait(job, terms):
            self._lead(job)
        return job.ran()

    def submit(
        self,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        terms: Terms,
        statistics: Statistics,
        later: Later,
        lead_here: bool,
    ) -> None:
        """As `run`, for a request that is answered by whoever has its rows; `later.done` is called once for it.

        Args:
            inputs: of the request.
            rows: in them.
            terms: for whom, and until when.
            statistics: of the model.
            later: how it is answered.
            lead_here: this thread may run it, and those that share its run; otherwise this waits for nothing.

        Raises:
            Exhausted: as `run`; nothing is called then.
            DeadlineExceeded: likewise.
        """
        job = self._job(inputs, rows, terms, statistics, later)
        idle = self._place(job)
        if idle:
            # Leads none of those after it where this thread runs it, which still holds its call.
            self._spawn(self._lead(job) if lead_here else job)
        else:
            self._alarm.at(job.ends_at)
        # In the queue, or perhaps in that for a thread.
        if not (idle and lead_here) and not terms.on_leave(partial(self._withdraw, job, "cancelled", CallerLeft)):
            self._withdraw(job, "cancelled", CallerLeft)

    def withdraw(self) -> None:
        """Ends what waits, with MODEL_NOT_READY: the version is trusted no more. Runs under way end as they do."""
        with self._lock:
            self._withdrawn = True
            self._queue.withdraw_all()
        self._queue.tell_ended()

    def _job(
        self, inputs: Mapping[str, Array], rows: int, terms: Terms, statistics: Statistics, later: Later | None
    ) -> Job:
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
            later,
        )
        if self._board is not None:
            job.mark, alone = self._board.mark(inputs, self._key + terms.tenant.encode())
            job.shape = None if alone else job.shape
        return job

    def _priority(self, wish: int) -> int:
        return wish - 1 if 1 <= wish <= self._levels else (self._levels - 1) // 2

    # Queueing.

    def _place(self, job: Job) -> bool:
        """Puts a request into the queue; True when it is to be run now instead."""
        with self._lock:
            idle = self._free > 0 or (
                self._may_be_light and not self._runner.merges and self._runner.lightness.covers(job.inputs)
            )
            if idle:
                self._free -= 1
                self._forecast.began(job, at=job.queued_at, rows=job.rows)
            elif self._withdrawn:
                job.statistics.shed("withdrawn")
                raise withdrawn()
            else:
                self._enqueue(job, job.queued_at)
        self._queue.tell_ended()
        return idle

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
            self._queue.end(displaced, exhausted("gave its place in the queue to a caller with less in it", expected))
        self._queue.add(job)

    def _expect(self, more: int, now: float) -> float:
        """Seconds until so many more rows would be done if they were queued now. Under the lock."""
        return self._forecast.until_done(
            requests=len(self._queue) + 1, rows=self._queue.rows + more, now=now, merges=self._runner.merges
        )

    def _wait(self, job: Job, terms: Terms) -> bool:
        """Sleeps until the job is done; True when it is to lead a run instead."""
        if not terms.on_leave(partial(self._withdraw, job, "cancelled", CallerLeft)):
            self._withdraw(job, "cancelled", CallerLeft)
        if not job.wake.acquire(timeout=max(0.0, job.ends_at - self._now())):
            self._withdraw(job, "deadline", expired)
            job.wake.acquire()  # withdrawn, or taken in the last moment and soon done
        return job.state == LEADS

    def _withdraw(self, job: Job, reason: str, error: Callable[[], Exception]) -> None:
        """Takes a job out of the queue, if it is still there. From any thread."""
        with self._lock:
            job.left = True
            self._queue.withdraw(job, reason, error())
        self._queue.tell_ended()

    def _end_late(self) -> float | None:
        """Ends what has expired in the queue and has no thread to see to it; when to look again."""
        now = self._now()
        with self._lock:
            following = self._queue.end_late(now)
        self._queue.tell_ended()
        return None if following is None else max(following, now + _LOOK_S)

    # Running. One thread per run.

    def _lead_on(self, job: Job | None) -> None:
        """Leads a run that no thread waits for, and those that follow; some, as other models want threads, too."""
        for _ in range(_RUNS_ON_END):
            if job is None:
                return
            job = self._lead(job)
        self._spawn(job)

    def _spawn(self, job: Job | None) -> None:
        """Gives a run that no thread waits for a thread; what gets none is ended, and the next one gets one."""
        while job is not None and job.later is not None:
            try:
                job.later.spawn(partial(self._lead_on, job))
            except RuntimeError:
                job.error, job.state = Unavailable("no thread is left to lead a run"), DONE
                following = self._hand_on(job, 0)
                job.tell()
                job = following
            else:
                return

    def _lead(self, leader: Job) -> Job | None:
        """Runs the leader and whoever may come along, and answers or wakes them; the next to lead by this thread.

        A thread that has an answer of its own to give leads no other.
        """
        waited_for, following = leader.later is None, None
        batch, rows = [leader], 0
        try:
            if leader.state == LEADS:
                batch = self._gather(leader)
            elif not waited_for:
                self._end_unwanted(batch, self._now())
            rows = sum(job.rows for job in batch)
            if batch:
                self._execute(batch)
        except BaseException:
            if waited_for:
                raise
            _LOGGER.exception("a run was broken off")  # each of its requests is told that it has no answer
        finally:
            following = self._hand_on(leader, rows)
            for job in batch if leader in batch else (leader, *batch):
                job.state = DONE
                if job is not leader or not waited_for:
                    job.tell()
            if waited_for:
                self._spawn(following)
        return None if waited_for else following

    def _gather(self, leader: Job) -> list[Job]:
        """The leader, if its time is not over, and whoever shares its run."""
        batch, lingered = [leader], 0.0
        with self._lock:
            if self._runner.merges:
                lingered = self._queue.gather(batch)
            now = self._now()
            # From when it was told to, less what it waited for others: until a woken thread runs, and while answers
            # to the last run are given, the instance serves nobody, and predictions must know.
            self._forecast.began(leader, at=leader.led_at + lingered, rows=sum(job.rows for job in batch))
        self._queue.tell_ended()
        if lingered:
            self._alarm.at(now)  # it may have looked while what was put back was not in the queue
        for job in batch:
            job.queue_ns = int((now - job.queued_at) * 1e9)
        self._end_unwanted(batch, now)
        return batch

    def _end_unwanted(self, batch: list[Job], now: float) -> None:
        """Takes the leader out of its batch if nobody waits for it any more: it may have waited for its thread."""
        leader = batch[0]
        if leader.left or leader.ends_at <= now:
            batch.remove(leader)
            leader.error = CallerLeft() if leader.ends_at > now else expired()
            leader.statistics.shed("cancelled" if leader.ends_at > now else "deadline")

    def _hand_on(self, leader: Job, rows: int) -> Job | None:
        """Ends a run. Who is next in the queue leads: woken if a thread waits for it, otherwise returned."""
        now, following = self._now(), None
        with self._lock:
            self._forecast.ended(leader, at=now, rows=rows)
            following = self._queue.leader(now, self._forecast.run_time) if self._free >= 0 else None
            if following is None:
                self._free += 1
            else:
                # Counts as a run from now on: see `_gather`.
                self._forecast.began(following, at=now, rows=following.rows)
        self._queue.tell_ended()
        if following is not None and following.later is None:
            following.wake.release()
            return None
        return following

    def _execute(self, batch: list[Job]) -> None:
        run, board = id(batch), self._board
        places = board.begin([job.mark for job in batch]) if board is not None else []
        self._runs[run] = self._now()
        try:
            self._runner.compute(batch)
        finally:
            del self._runs[run]
            if board is not None:
                board.end(places)
