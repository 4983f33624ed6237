"""Running streams, of predictions or of uploads: how many, whose, and for how long one may do nothing.

Each stream holds a thread of the server, which waits for its peer: to send, or
to read what was sent, because a reply is handed to the transport one at a time.
A peer that does neither for too long is told so, by a status. That cannot be sent
while a reply is half sent, so a stream that is still there a moment later is cancelled.

If this fails: peers that neither send nor read hold threads until their tokens expire.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded, Exhausted, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RETRY_BUSY = timedelta(seconds=1)
_CANCEL_AFTER_S = 0.5


class Stream:
    """One running stream, which says what it does."""

    __slots__ = ("_cancel", "_end", "_told_at", "waits_since")

    def __init__(self, end: Callable[[Exception], object], cancel: Callable[[], object]) -> None:
        self._end, self._cancel = end, cancel
        self._told_at: float | None = None
        self.waits_since: float | None = None

    def waits(self, now: float) -> None:
        """From now on it waits for its peer."""
        self.waits_since = now

    def works(self) -> None:
        """It works; that takes as long as it takes."""
        self.waits_since = None

    def cut(self, now: float) -> bool:
        """Ends it for its idleness, and cancels it when it has not ended by that; True the first time."""
        if self._told_at is None:
            self._told_at = now
            self._end(DeadlineExceeded("the peer neither sent nor read for too long", reason=Reason.STREAM_IDLE))
            return True
        if now - self._told_at >= _CANCEL_AFTER_S:
            self._cancel()
        return False


class Streams:
    """The streams that run now.

    Args:
        limit: how many may run at once; below the number of the server's threads.
        kept: how many of them one tenant alone never takes.
        idle: how long one may wait for its peer.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self, *, limit: int, idle: timedelta, kept: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._most = limit, limit - kept
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self._idle = idle.total_seconds()
        self.now = now
        self._running: dict[int, Stream] = {}

    @property
    def running(self) -> int:
        """How many run now."""
        return len(self._running)

    @contextmanager
    def enter(
        self, end: Callable[[Exception], object], *, cancel: Callable[[], object], tenant: str = ""
    ) -> Iterator[Stream]:
        """A place among the streams.

        Args:
            end: has the stream's next wait for a message, or the one under way, end by an error.
            cancel: ends the call from another thread, whatever it does.
            tenant: whose it is.

        Raises:
            Exhausted: too many run already, of all or of the tenant.
        """
        self._take(tenant)
        stream = Stream(end, cancel)
        self._running[id(stream)] = stream
        try:
            yield stream
        finally:
            self._running.pop(id(stream), None)
            self._give(tenant)

    def _take(self, tenant: str) -> None:
        with self._lock:
            held = self._held.get(tenant, 0)
            if held >= self._most or sum(self._held.values()) >= self._limit:
                raise Exhausted("too many streams at once", retry_after=_RETRY_BUSY)
            self._held[tenant] = held + 1

    def _give(self, tenant: str) -> None:
        with self._lock:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

    def cut_idle(self) -> int:
        """Ends the streams whose peers have neither sent nor read for too long; how many."""
        now, cut = self.now(), 0
        for stream in tuple(self._running.values()):
            since = stream.waits_since
            if since is not None and now - since > self._idle:
                cut += stream.cut(now)
        return cut
