"""How many threads of one tenant may run beside the thread that serves all calls.

Handlers that compute in Python hold the interpreter in turns, and the serving thread is one more
that wants it: beside fourteen of them it waits for fourteen before it sees the next header. More
than one or two of such threads serve nobody sooner. Handlers that wait for something else hold up nobody, and
there each thread counts. The serving thread sees which it is: by how long it waits to go on after it looked for
events and did not wait for any. While only one tenant calls, nothing is held back.

If this fails: one tenant's computing handlers delay the others' calls, or its waiting ones wait longer
than they need to.
"""

from __future__ import annotations

from typing import Final

CROWDED_S: Final = 300e-6
"""The serving thread waits as long on average: fewer threads may run."""
CALM_S: Final = 100e-6
"""Or no longer than that: one more may."""
STEP_S: Final = 0.01
"""How often that is judged."""
FEWEST: Final = 2
"""Threads of one tenant that run whatever is waited for: one that computes must not keep all others of its tenant."""
SHARED_S: Final = 1.0
"""Seconds after the last change between tenants for which several are said to call."""
_OF = 32.0


class Pressure:
    """A limit on the threads of one tenant. For the serving thread alone.

    Args:
        most: the limit while nobody is held up.

    Attributes:
        limit: what it is now.
    """

    __slots__ = ("_average_s", "_judged", "_last", "_most", "_shared", "limit")

    def __init__(self, most: int) -> None:
        self.limit = self._most = most
        self._average_s = 0.0
        self._judged = self._shared = float("-inf")
        self._last: str | None = None

    def seen(self, line: str, now: float) -> None:
        """Notes whose event came; `now` is monotonic."""
        if line != self._last:
            if self._last is not None:
                self._shared = now
            self._last = line

    def waited(self, seconds: float, now: float) -> int:
        """Notes how long the serving thread waited to go on; the limit from now on."""
        self._average_s += (seconds - self._average_s) / _OF
        if now - self._judged >= STEP_S:
            self._judged = now
            if now - self._shared > SHARED_S:
                self.limit = self._most
            elif self._average_s > CROWDED_S:
                self.limit = max(min(FEWEST, self._most), self.limit // 2)
            elif self._average_s < CALM_S and self.limit < self._most:
                self.limit += 1
        return self.limit

    def idle(self) -> int:
        """Notes that nothing came for long: nobody is held up."""
        self._average_s, self.limit = 0.0, self._most
        return self.limit
