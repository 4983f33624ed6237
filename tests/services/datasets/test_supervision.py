"""Work that must not end in silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from services.datasets.supervision import keep_running

SOON = timedelta(milliseconds=1)


async def test_work_that_fails_is_told_without_its_text_and_begins_again(caplog) -> None:
    """Twice it fails, the third time it works on; the twin ends by itself, and is left at that."""
    begun = asyncio.Semaphore(0)
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1
        if times < 3:
            raise RuntimeError("quoted")
        begun.release()
        await asyncio.Event().wait()

    running = asyncio.create_task(keep_running("looking", work, again_after=SOON))
    async with asyncio.timeout(5):
        await begun.acquire()
    assert caplog.text.count("the looking failed and begins again: RuntimeError") == 2
    assert "quoted" not in caplog.text
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async def done() -> None:
        return

    await keep_running("looking", done)
