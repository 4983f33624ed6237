"""Asks for the next batch while this one is opened and sent: the database and the service work at the same time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

Batch = TypeVar("Batch")


async def fetched_ahead(
    numbers: Sequence[int], fetch: Callable[[int], Awaitable[Batch]]
) -> AsyncGenerator[tuple[int, asyncio.Task[Batch]], None]:
    """Each number with what is being fetched for it; the one behind it is asked for too. Close it when done.

    What a task raises is the taker's to see, in its turn. Memory: two batches.
    """
    tasks: dict[int, asyncio.Task[Batch]] = {}

    async def call(number: int) -> Batch:
        return await fetch(number)

    try:
        for place, number in enumerate(numbers):
            for each in numbers[place : place + 2]:
                if each not in tasks:
                    tasks[each] = asyncio.create_task(call(each))
            yield number, tasks.pop(number)
    finally:
        for task in tasks.values():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
