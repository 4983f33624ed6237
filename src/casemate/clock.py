"""Time as an argument: whoever judges by the clock is given one."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that people agree on, one that never goes back."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC: for `exp`, `notAfter` and everything written down."""
        ...

    def monotonic(self) -> float:
        """Seconds from an unnamed start: for ages, which a stepped wall clock must not change."""
        ...


class SystemClock:
    """The machine's own clocks."""

    # Functions of the machine's own, not methods around them: every call through the gate asks several times.
    now = staticmethod(partial(datetime.now, UTC))
    """The machine's wall clock in UTC."""
    monotonic = staticmethod(time.monotonic)
    """The machine's monotonic clock, in seconds."""
