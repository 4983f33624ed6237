"""Blocking calls, one after another, on a thread that does nothing else."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from casemate.errors import Unavailable

T = TypeVar("T")


class DedicatedThread:
    """Runs jobs in order, for callers in any event loop.

    The thread is a daemon: a library that never returns does not keep the
    process from ending. A job that has begun cannot be stopped; its caller
    stops waiting, and the jobs behind it wait or give up.

    Args:
        name: of the thread.
        limit: jobs that may wait; one more is refused at once.
    """

    __slots__ = ("_jobs", "_thread")

    def __init__(self, *, name: str, limit: int = 256) -> None:
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], T], *, timeout: timedelta) -> T:  # noqa: ASYNC109  # its own limit is what this class is for
        """What `job` returns or raises.

        Raises:
            Unavailable: it did not end in time, or too many wait.
        """
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full as error:
            raise Unavailable("too many calls wait for a slow device") from error
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise Unavailable("a device did not answer in time") from error

    def close(self) -> None:
        """Ends the thread after the jobs that wait; does not wait for it."""
        try:
            self._jobs.put_nowait(None)
        except queue.Full:
            return  # It is stuck, and a daemon.

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, future = entry
            if not future.set_running_or_notify_cancel():
                continue  # The caller gave up before it began.
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  # every outcome is the caller's
                future.set_exception(error)
            else:
                future.set_result(result)
                del result
            del entry, job, future  # A data key is not kept until the next job comes.
