"""Threads that ask the key-encryption key, and a service that ends meanwhile."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from casemate.errors import Unavailable
from services.inference.blocking_kek import KekThread

PATIENCE = timedelta(seconds=30)


async def answer() -> str:
    return "key"


@pytest.mark.parametrize("callers", [1, 40])
def test_whoever_waits_when_the_service_ends_is_told_and_no_call_is_left(callers: int) -> None:
    """Calls that had no turn yet are among them: one that is dropped would be warned of, and that fails here."""
    thread, began, told = KekThread(), threading.Barrier(callers + 1), []

    async def never() -> str:
        await asyncio.Event().wait()
        return "never"

    def ask() -> None:
        began.wait(PATIENCE.total_seconds())
        try:
            thread.run(never(), timeout=PATIENCE)
        except Unavailable as error:
            told.append(str(error))

    assert thread.run(answer(), timeout=PATIENCE) == "key"
    asking = [threading.Thread(target=ask) for _ in range(callers)]
    for each in asking:
        each.start()
    began.wait(PATIENCE.total_seconds())
    thread.close()
    for each in asking:
        each.join(PATIENCE.total_seconds())
    assert told == ["the service has ended"] * callers
    with pytest.raises(Unavailable):
        thread.run(answer(), timeout=PATIENCE)


def test_a_key_that_does_not_answer_in_time_is_unavailable_and_the_next_call_is_answered() -> None:
    thread = KekThread()
    try:
        with pytest.raises(Unavailable, match="in time"):
            thread.run(asyncio.sleep(60), timeout=timedelta(milliseconds=10))
        assert thread.run(answer(), timeout=PATIENCE) == "key"
    finally:
        thread.close()
