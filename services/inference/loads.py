"""Loads that nobody waits for without an end.

A load reads files, asks the key-encryption key and datasets, and has ONNX Runtime
work on a whole graph. Any of these may not come back (a disk that hangs, a graph whose
constants take for ever to fold), and a thread that is in there cannot be ended. So each load
has a thread of its own: who asked for it waits so long and no longer. The load goes on by
itself; what it brings is served when it comes.

If this fails: one version that does not load keeps every other of the replica from it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future
from typing import TYPE_CHECKING, Any

from casemate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from services.inference.loader import LoadedModel
    from services.inference.repository import Slot

_LOGGER = logging.getLogger(__name__)


class Loads:
    """The loads that run now; safe from many threads.

    Args:
        load: loads a version, on purpose or not, and serves it.
        patience: a load is overdue when it takes longer.
        late: called when an overdue load came to a good end.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        load: Callable[[Slot, bool], LoadedModel],
        *,
        patience: timedelta,
        late: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._patience = patience.total_seconds()
        self._late = late
        self._now = now
        self._lock = threading.Lock()
        self._running: dict[tuple[Slot, bool], tuple[Future[LoadedModel], float]] = {}
        self._closed: Future[Any] = Future()

    @property
    def overdue(self) -> frozenset[Slot]:
        """The versions whose loads have taken longer than the patience, and still run."""
        now = self._now()
        with self._lock:
            return frozenset(slot for (slot, _), (_, began) in self._running.items() if now - began >= self._patience)

    def run(self, slot: Slot, *, on_purpose: bool, within: timedelta) -> LoadedModel:
        """The version, loaded by this call or by one under way for the same purpose.

        Raises:
            Unavailable: the load began longer than `within` ago and has not ended, or the process ends.
            CasemateError: as the load raises.
        """
        future, began = self._flight(slot, on_purpose=on_purpose)
        left = max(0.0, began + within.total_seconds() - self._now())
        concurrent.futures.wait((future, self._closed), timeout=left, return_when=FIRST_COMPLETED)
        if not future.done():
            raise Unavailable(f"its load has not ended within {within.total_seconds():g} s, and goes on by itself")
        return future.result()

    def close(self) -> None:
        """Lets everybody go who waits; loads under way are not waited for."""
        with self._lock:
            if not self._closed.done():
                self._closed.set_result(None)

    def _flight(self, slot: Slot, *, on_purpose: bool) -> tuple[Future[LoadedModel], float]:
        with self._lock:
            found = self._running.get((slot, on_purpose))
            if found is not None:
                return found
            flight = self._running[slot, on_purpose] = (Future(), self._now())
        threading.Thread(target=self._fly, args=(slot, on_purpose, *flight), name="load", daemon=True).start()
        return flight

    def _fly(self, slot: Slot, on_purpose: bool, future: Future[LoadedModel], began: float) -> None:  # noqa: FBT001  # a thread's arguments
        error: BaseException | None = None
        try:
            loaded = self._load(slot, on_purpose)
        except BaseException as raised:  # noqa: BLE001  # raised where somebody waits for it
            error = raised
        late = self._now() - began >= self._patience
        with self._lock:
            del self._running[slot, on_purpose]
        if error is not None:
            future.set_exception(error)
            if late:  # nobody may be left to hear of it
                _LOGGER.error("not loaded: %s: after %.0f s: %s", slot, self._now() - began, error)
            return
        future.set_result(loaded)
        if late:
            _LOGGER.info("loaded, after %.0f s: %s", self._now() - began, slot)
            self._late()
