"""Bodies that do not arrive end their calls on `grpc.aio`, by one timer for all of them.

A timer for each call (`asyncio.timeout`) costs 5 µs where nearly every body comes
with its headers; a note of who waits costs a tenth of that.

If this fails: a call whose body never comes holds its place until its own deadline.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LONGEST_TICK_S = 0.25


class LateBodies:
    """The first messages that are waited for now, in one event loop.

    Args:
        within_s: seconds that a first message may take; it is ended up to a quarter of that later.
    """

    def __init__(self, *, within_s: float) -> None:
        self._within_s = within_s
        self._tick_s = min(_LONGEST_TICK_S, within_s / 4)
        self._waiting: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def first(self, messages: AsyncIterator[bytes]) -> bytes:
        """The first message.

        Raises:
            DeadlineExceeded: it did not come in time.
            StopAsyncIteration: the call ended without one.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is None:
            raise RuntimeError("a message is waited for outside of a task")
        self._waiting[task] = loop.time() + self._within_s
        if self._timer is None:
            self._timer = loop.call_later(self._tick_s, self._look)
        try:
            return await anext(messages)
        except asyncio.CancelledError:
            if task not in self._late or task.uncancel() > 0:
                raise  # somebody else ends this call: its peer left, or its right did
            raise DeadlineExceeded("the body did not arrive") from None
        finally:
            self._waiting.pop(task, None)
            self._late.discard(task)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, ends in list(self._waiting.items()):
            if now >= ends:
                del self._waiting[task]
                self._late.add(task)
                task.cancel()
        self._timer = loop.call_later(self._tick_s, self._look) if self._waiting else None
