"""Judges a running stream of `grpc.aio` again, by a timer and whenever trust changes, and ends it.

A handler may swallow its interruption, by mistake or because it shields what it
awaits. So it is interrupted first, and a quarter of a second later its peer is
told from another task; nothing that the handler still says goes out.

If this fails: a stream outlives the right that it was opened by, until its peer's
connection ages out. A handler that blocks the event loop itself delays its own end as
it delays everything else there.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.gate.core.trust import TrustSnapshot

INSIST_AFTER_S: Final = 0.25
"""Seconds that an interrupted handler has to end by itself."""
_INSIST_AT_MOST_EVERY_S: Final = 30.0


class StreamGuard:
    """Interrupts the task that made it when its call must end. Made inside that task; closed by it.

    Args:
        gate: judges.
        admission: of the call.
        caller: of the call.
        every_s: how often it is judged, without news.
        tell: sends the status of a denial by the call's `abort`, which raises when that is sent.
    """

    def __init__(
        self,
        gate: Gate,
        admission: Admission,
        caller: Caller,
        *,
        every_s: float,
        tell: Callable[[Exception], Awaitable[None]],
    ) -> None:
        self._gate = gate
        self._admission = admission
        self._caller = caller
        self._every_s = every_s
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._writing = 0
        self._cancels = 0
        self._insist_after_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told: asyncio.Task[BaseException] | None = None
        self.denial: Exception | None = None
        self._unsubscribe = gate.trust.subscribe(self._trust_changed)
        self._arm()

    def judge_again(self) -> None:
        """Raises what ends the call, if anything does by now."""
        denial = self._find_denial()
        if denial is not None:
            raise denial

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """While a message or the status is being written: interrupted only if that does not end. Judges afterwards."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
        if self.denial is not None:
            raise self.denial

    def forgive_cancellation(self) -> None:
        """Takes back the interruptions of the task, so that it can still send its status."""
        while self._cancels and self._task is not None:
            self._cancels -= 1
            self._task.uncancel()

    async def told(self) -> None:
        """Raises what ends a call whose peer was told from outside; returns when it was not."""
        if self._told is not None:
            raise await self._told

    def close(self) -> None:
        """Ends the timer and the subscription."""
        self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
        self._task = None

    def _arm(self) -> None:
        left_s = (self._caller.expires_at - self._gate.clock.now()).total_seconds()
        self._timer = self._loop.call_later(max(0.0, min(self._every_s, left_s)), self._look)

    def _trust_changed(self, _snapshot: TrustSnapshot) -> None:
        with suppress(RuntimeError):  # the loop may have ended, and its calls with it
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """By the timer and by news, until the call must end; what ends it may have been found by a message as well."""
        if self._task is None or self._insist_after_s is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._find_denial() is None:
            self._arm()
            return
        if not self._writing:
            self._interrupt()
        self._insist_after_s = INSIST_AFTER_S
        self._timer = self._loop.call_later(INSIST_AFTER_S, self._insist)

    def _insist(self) -> None:
        if self._task is None or self.denial is None or self._insist_after_s is None:
            return
        if self._told is None:
            self._told = self._loop.create_task(self._tell_from_outside(self.denial))
        self._interrupt()  # even a write: its peer does not read
        self._insist_after_s = min(2 * self._insist_after_s, _INSIST_AT_MOST_EVERY_S)
        self._timer = self._loop.call_later(self._insist_after_s, self._insist)

    async def _tell_from_outside(self, denial: Exception) -> BaseException:
        try:
            await self._tell(denial)
        except grpc.aio.AbortError as aborted:
            return aborted  # grpcio wants this very one raised in the call's own task
        except Exception:  # noqa: BLE001  # its own task was about to tell, or the peer has left
            return denial
        return denial

    def _interrupt(self) -> None:
        if self._task is not None:
            self._cancels += 1
            self._task.cancel()

    def _find_denial(self) -> Exception | None:
        if self.denial is None:
            try:
                self._gate.recheck(self._admission, self._caller)
            except Exception as error:  # noqa: BLE001  # a bug in judging ends the call as well
                self.denial = error
        return self.denial
