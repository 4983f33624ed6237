"""Ends what waits without a thread, when its time is over.

If this fails: a request whose caller set no deadline of gRPC's waits in a queue beyond the server's own.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOGGER = logging.getLogger(__name__)


class Alarm:
    """Calls a function at the earliest of the moments it was told; its thread lives only while one is to come.

    Args:
        ring: called at such a moment; returns when to call it again, None for not at all. From the alarm's thread.
        now: the clock of those moments, in seconds.
    """

    def __init__(self, ring: Callable[[], float | None], *, now: Callable[[], float]) -> None:
        self._ring = ring
        self._now = now
        self._changed = threading.Condition(threading.Lock())
        self._next: float | None = None
        self._set = False

    def at(self, moment: float) -> None:
        """Rings then, or before; where no thread is left for that, at the first moment told when there is one."""
        earliest = self._next
        if earliest is not None and earliest <= moment:
            return  # what it is for is there already, so that ring finds it
        with self._changed:
            if self._next is not None and self._next <= moment:
                return
            if self._set:
                self._next = moment
                self._changed.notify()
            elif self._start():
                self._set, self._next = True, moment

    def _start(self) -> bool:
        try:
            threading.Thread(target=self._wait, name="queue-deadlines", daemon=True).start()
        except RuntimeError:  # the machine has none left; who is told next tries again
            _LOGGER.error("no thread is left to end what waits for too long")  # noqa: TRY400  # a trace tells no more
            return False
        return True

    def _wait(self) -> None:
        while self._comes():
            following = self._look()
            if following is not None:
                self.at(following)

    def _comes(self) -> bool:
        """Sleeps until it is time to ring; False when there is nothing to ring for."""
        with self._changed:
            while self._next is not None and (left := self._next - self._now()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            self._set = self._next is not None
            self._next = None  # before it looks: what comes from now on is told again
            return self._set

    def _look(self) -> float | None:
        try:
            return self._ring()
        except Exception:
            _LOGGER.exception("what waits could not be looked through")
            return None
