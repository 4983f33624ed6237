"""Judges a running stream of `grpc.aio` again, by a timer and whenever trust changes."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.gate.core.trust import TrustSnapshot


class StreamGuard:
    """Interrupts the task that made it when its call must end. Made inside that task; closed by it."""

    def __init__(self, gate: Gate, admission: Admission, caller: Caller, *, every_s: float) -> None:
        self._gate = gate
        self._admission = admission
        self._caller = caller
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._interruptible = True
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None
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
        """While a message is being written: a status cannot follow half of one. Judges again afterwards."""
        self._interruptible = False
        try:
            yield
        finally:
            self._interruptible = True
        if self.denial is not None:
            raise self.denial

    def forgive_cancellation(self) -> None:
        """Takes back the interruption of the task, so that it can still send its status."""
        if self._cancelled and self._task is not None:
            self._task.uncancel()

    def close(self) -> None:
        """Ends the timer and the subscription."""
        self._unsubscribe()
        if self._timer is not None:
            self._timer.cancel()
        self._task = None

    def _arm(self) -> None:
        left_s = (self._caller.expires_at - self._gate.clock.now()).total_seconds()
        self._timer = self._loop.call_later(max(0.0, min(self._every_s, left_s)), self._tick)

    def _tick(self) -> None:
        self._look()
        if self.denial is None and self._task is not None:
            self._arm()

    def _trust_changed(self, _snapshot: TrustSnapshot) -> None:
        with suppress(RuntimeError):  # the loop may have ended, and its calls with it
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if self._task is None or self.denial is not None:
            return
        if self._find_denial() is not None and self._interruptible:
            self._cancelled = True
            self._task.cancel()

    def _find_denial(self) -> Exception | None:
        if self.denial is None:
            try:
                self._gate.recheck(self._admission, self._caller)
            except Exception as error:  # noqa: BLE001  # a bug in judging ends the call as well
                self.denial = error
        return self.denial
