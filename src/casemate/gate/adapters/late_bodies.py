"""Bodies on `grpc.aio`: room for them before they are asked for, and an end by one timer if they do not arrive.

A timer for each call (`asyncio.timeout`) costs 5 µs where nearly every body comes
with its headers; a note of who waits costs a tenth of that.

If this fails: a call whose body never comes holds its place until its own deadline; bodies that wait for a turn
fill the memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded
from casemate.transport.byte_budget import budget_of
from casemate.transport.options import DEFAULT_MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from casemate.transport.byte_budget import ByteBudget, Held

_LONGEST_TICK_S = 0.25


class LateBodies:
    """The first messages that are waited for now, in one event loop.

    Args:
        within_s: seconds that a first message may take; it is ended up to a quarter of that later.
        budget: bytes of those that wait; None: as for the default size of messages.
    """

    def __init__(self, *, within_s: float, budget: ByteBudget | None = None) -> None:
        self._budget = budget if budget is not None else budget_of(DEFAULT_MAX_MESSAGE_BYTES)
        self._within_s = within_s
        self._tick_s = min(_LONGEST_TICK_S, within_s / 4)
        self._waiting: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def only(self, messages: AsyncIterable[bytes], *, tenant: str, caller: str) -> tuple[bytes, Held]:
        """The message of a single call, asked for once there is room; `end` what is held of it when it waits no more.

        Raises:
            DeadlineExceeded: it did not come in time.
            StopAsyncIteration: the call ended without one.
        """
        room: asyncio.Future[None] | None = None

        def go() -> None:
            if room is not None and not room.done():
                room.set_result(None)

        held = self._budget.ask(tenant=tenant, caller=caller, go=go)
        try:
            if not held.bytes:
                room = asyncio.get_running_loop().create_future()  # nothing was awaited since: one loop asks and gives
                await room
            raw = await self.first(aiter(messages))  # grpcio warns of an iterator that is not used
        except BaseException:
            if not held.leave():
                held.end()
            raise
        held.arrived(len(raw))
        return raw, held

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
