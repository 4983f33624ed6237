"""The threads of a synchronous server, shared out among those who call.

grpcio hands calls to a pool in the order of their arrival: whoever sends a
thousand calls is served a thousand times before the next. Here every share
(a tenant's, or that of all strangers) waits in a line of its own, the lines are
served in turn, and no share holds all threads.

If this fails: one tenant's flood delays the others' calls. No right depends on it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Work = tuple["Future[Any] | None", Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_LOGGER = logging.getLogger(__name__)

SHARE: ContextVar[str | Callable[[Sequence[object]], str]] = ContextVar("casemate_share", default="")
"""Whose line a call waits in; an interceptor sets it in the call's own context. Empty: that of all strangers.

An interceptor does not see the connection of a call. Where the line depends on it, this is
a function: it is asked once, with what grpcio submits, and must neither block nor raise."""


class FairThreadPool(ThreadPoolExecutor):
    """Runs what is submitted: lines by share, served in turn; first come, first served within a line.

    Args:
        threads: calls that run at once.
        name: prefix of the threads' names.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        super().__init__(max_workers=threads, thread_name_prefix=name)
        self.size = threads
        # One in eight stays free for a share that has none running, as far as there are enough of them.
        self._alone = self._most = threads - max(1, threads // 8) if threads > 1 else 1
        self._limited: dict[str, int] = {}
        self._name = name
        self._turn = threading.Lock()
        self._lines: dict[str, deque[_Work]] = {}
        self._running: dict[str, int] = {}
        # Each idle thread waits at a lock of its own, which costs a third of a condition; the last one to fall
        # idle is woken first, as the processor still has its memory at hand.
        self._idle: list[threading.Lock] = []
        self._waking = False
        self._started = 0
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Puts a call at the end of its share's line.

        grpcio submits `Context.run` of the call's context, in which interceptors ran;
        anything else is a stranger's.

        Raises:
            RuntimeError: the pool was shut down.
        """
        context = getattr(fn, "__self__", None)
        share = context.get(SHARE, "") if isinstance(context, Context) else ""
        if not isinstance(share, str):
            share = share(args)
        future: Future[T] = Future()
        self._put(share, (future, fn, args, kwargs))
        return future

    def run(self, share: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Puts a call at the end of this share's line; nobody waits for its result, and it raises nothing.

        Raises:
            RuntimeError: the pool was shut down.
        """
        self._put(share, (None, fn, args, kwargs))

    def _put(self, share: str, work: _Work) -> None:
        with self._turn:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            line = self._lines.get(share)
            if line is None:
                line = self._lines[share] = deque()
            line.append(work)
            # Nobody is woken for a share that has all it may: whoever ends one of its calls takes the next.
            bed = self._rouse() if self._may(share, line[0]) else None
        if bed is not None:
            bed.release()

    def limit(self, threads: int) -> None:
        """From now on no share has more threads than that, one or more, for what `run` was given; running calls go on.

        What is submitted, as grpcio's streams are, neither counts nor is held back: a tenant with two streams open,
        which wait for their peers, would have no thread left for anything else. Streams are bounded elsewhere.
        """
        before, self._most = self._most, min(self._alone, threads)
        if self._most <= before:
            return
        with self._turn:  # what waits for the limit alone would wait for the next call that comes or ends
            bed = self._rouse() if self._lines and self._may_run() else None
        if bed is not None:
            bed.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  # the base's
        """Ends the threads when the lines are empty; cancels what waits if asked to."""
        with self._turn:
            self._ended = True
            if cancel_futures:
                for line in self._lines.values():
                    for work in line:
                        if work[0] is not None:
                            work[0].cancel()
                self._lines.clear()
            self._wake_all()
        if wait:
            for thread in list(self._threads):
                thread.join()

    def _rouse(self) -> threading.Lock | None:
        """The bed of one more thread to wake, unless one is on its way.

        That one looks, once it has its call, whether another is needed. To wake one for
        every call costs more than the calls: a thread that is awake anyway would have
        taken the next one before the woken thread came.
        """
        if self._waking:
            return None
        if self._idle:
            self._waking = True
            return self._idle.pop()
        if self._started < self.size:
            self._start()
        return None

    def _start(self) -> None:
        self._started += 1
        thread = threading.Thread(target=self._serve, name=f"{self._name}_{self._started}", daemon=True)
        self._threads.add(thread)  # type: ignore[attr-defined]  # the base's set; its stubs leave it out
        thread.start()

    def _serve(self) -> None:
        share: str | None = None
        limited = False
        bed, woken = threading.Lock(), False
        bed.acquire()
        while True:
            other = None
            with self._turn:
                if share is not None:
                    _count_down(self._running, share)
                    if limited:
                        _count_down(self._limited, share)
                if woken:
                    self._waking = woken = False
                found = self._next()
                if found is None:
                    if self._ended and not self._lines:
                        self._wake_all()
                        return
                    self._idle.append(bed)
                elif self._lines and self._may_run():
                    other = self._rouse()
            if other is not None:
                other.release()
            if found is None:
                share = None
                bed.acquire()
                woken = True
                continue
            share, work = found
            limited = work[0] is None
            _run(*work)
            del work, found  # what a call held must not live until the next one

    def _wake_all(self) -> None:
        while self._idle:
            self._idle.pop().release()

    def _next(self) -> tuple[str, _Work] | None:
        """The first of the first line that may run; that line then goes to the end of the turn."""
        for share, line in self._lines.items():
            if self._may(share, line[0]):
                work = line.popleft()
                del self._lines[share]
                if line:
                    self._lines[share] = line
                self._running[share] = self._running.get(share, 0) + 1
                if work[0] is None:
                    self._limited[share] = self._limited.get(share, 0) + 1
                return share, work
        return None

    def _may(self, share: str, work: _Work) -> bool:
        """Whether this call may have one more thread of its share."""
        if self._running.get(share, 0) >= self._alone:
            return False
        return work[0] is not None or self._limited.get(share, 0) < self._most

    def _may_run(self) -> bool:
        return any(self._may(share, line[0]) for share, line in self._lines.items())


def _count_down(counts: dict[str, int], share: str) -> None:
    left = counts[share] - 1
    if left:
        counts[share] = left
    else:
        del counts[share]


def _run(future: Future[Any] | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if future is None:
        try:
            fn(*args, **kwargs)
        except BaseException:
            _LOGGER.exception("a call left its thread by an error")  # the thread goes on: its share has it counted
        return
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  # as every executor does: the future has it
        future.set_exception(error)
    else:
        future.set_result(result)
