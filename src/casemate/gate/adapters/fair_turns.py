"""The handlers of `grpc.aio`, shared out among those who call.

One event loop runs whatever is ready in the order of its coming: whoever sends a
hundred calls is served a hundred times before the next. Here so many single calls
run at once; others wait in a line for each share (a tenant, or a peer without one),
whoever has least running is served next, and no share holds all places. It is to this server
what `transport.fair_pool` is to the synchronous one.

If this fails: one tenant's flood delays the others' calls. No right depends on it.
"""

from __future__ import annotations

import asyncio
from collections import deque


class FairTurns:
    """Places of one event loop. For that loop's thread alone.

    Args:
        places: single calls whose handlers run at once.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        # As in the pool: one in eight stays free for a share that has none running.
        self._most = places - max(1, places // 8) if places > 1 else 1
        self._taken = 0
        self._running: dict[str, int] = {}
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    async def take(self, share: str) -> None:
        """Waits for a place, if there is none; give it back by `give`, whatever happens."""
        running = self._running.get(share, 0)
        if self._taken < self._places and running < self._most and share not in self._lines:
            self._taken += 1
            self._running[share] = running + 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(share, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(share)  # the turn came together with the cancellation
            else:
                self._forget(share, turn)
            raise

    def give(self, share: str) -> None:
        """Gives a place back; the next in turn has it."""
        self._taken -= 1
        running = self._running[share] - 1
        if running:
            self._running[share] = running
        else:
            del self._running[share]
        if self._lines:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._lines:
            share = min(self._lines, key=lambda name: self._running.get(name, 0))
            running = self._running.get(share, 0)
            if running >= self._most:
                return
            line = self._lines.pop(share)
            turn = line.popleft()
            if line:
                self._lines[share] = line  # to the end of the turn
            if not turn.done():
                self._taken += 1
                self._running[share] = running + 1
                turn.set_result(None)
                return
            # Its call was cancelled in this very moment, and has not been resumed yet to leave the line.

    def _forget(self, share: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(share)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[share]
