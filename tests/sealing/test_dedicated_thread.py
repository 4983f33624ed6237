"""The one thread that blocking devices are spoken to on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from casemate.errors import Unavailable
from casemate.sealing.dedicated_thread import DedicatedThread

LONG = timedelta(seconds=60)
SHORT = timedelta(milliseconds=50)


@pytest.fixture
def thread() -> Iterator[DedicatedThread]:
    made = DedicatedThread(name="device", limit=2)
    yield made
    made.close()


async def test_job_gives_what_it_returns_or_raises(thread: DedicatedThread) -> None:
    """The very exception, of whatever kind."""
    assert await thread.run(lambda: 7, timeout=LONG) == 7
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0, timeout=LONG)
    assert await thread.run(lambda: 8, timeout=LONG) == 8


async def test_job_behind_a_stuck_one_is_given_up_and_never_begun(thread: DedicatedThread) -> None:
    """Else a wrap that nobody waits for any more would be made hours later."""
    release, begun = threading.Event(), []
    stuck = asyncio.ensure_future(thread.run(release.wait, timeout=LONG))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="in time"):
        await thread.run(lambda: begun.append(1), timeout=SHORT)
    release.set()
    assert await stuck
    assert await thread.run(lambda: 7, timeout=LONG) == 7
    assert not begun


async def test_more_waiting_jobs_than_the_limit_are_refused_at_once(thread: DedicatedThread) -> None:
    """The queue in front of a dead device does not grow."""
    release, running = threading.Event(), threading.Event()

    def block() -> bool:
        running.set()
        return release.wait()

    stuck = asyncio.ensure_future(thread.run(block, timeout=LONG))
    while not running.is_set():
        await asyncio.sleep(0.001)
    waiting = [asyncio.ensure_future(thread.run(lambda: 7, timeout=LONG)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many"):
        await thread.run(lambda: 8, timeout=LONG)
    release.set()
    assert await asyncio.gather(stuck, *waiting) == [True, 7, 7]
    assert await thread.run(lambda: 8, timeout=LONG) == 8
