"""One thread that looks at running calls from outside: at intervals, and at once when trust changes."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import timedelta

    from casemate.clock import Clock
    from casemate.gate.core.trust import TrustSnapshot, TrustState

_LOGGER = logging.getLogger(__name__)


class Watched(Protocol):
    """A running call."""

    def tick(self, monotonic: float) -> None:
        """Looks at the call; called from the watchdog's thread."""
        ...


class Watchdog:
    """Ticks every watched call; its thread begins with the first one."""

    def __init__(self, *, trust: TrustState, clock: Clock, every: timedelta) -> None:
        self._clock = clock
        self._every_s = every.total_seconds()
        self._watched: dict[int, Watched] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._unsubscribe = trust.subscribe(self._trust_changed)

    def add(self, call: Watched) -> None:
        """Watches a call until it is removed."""
        self._watched[id(call)] = call
        if self._thread is None:
            self._start()

    def remove(self, call: Watched) -> None:
        """Stops watching; unknown calls are ignored."""
        self._watched.pop(id(call), None)

    def close(self) -> None:
        """Ends the thread."""
        self._unsubscribe()
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="gate-watchdog", daemon=True)
                self._thread.start()

    def _trust_changed(self, _snapshot: TrustSnapshot) -> None:
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._every_s)
            self._wake.clear()
            for call in list(self._watched.values()):
                try:
                    call.tick(self._clock.monotonic())
                except Exception:
                    _LOGGER.exception("a running call could not be judged again")
