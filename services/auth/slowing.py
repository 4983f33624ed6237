"""Slows whoever fails often: by its proven identity, never by the name that it claims.

So nobody locks another out by guessing in its name, and ten thousand bad attempts
from one certificate cost that certificate alone.

If this fails: one caller guesses as fast as the quota lets it; a secret has 256 bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from casemate.clock import Clock
from casemate.errors import Exhausted, Unauthenticated

FREE_FAILURES: Final = 10
"""That cost no time: a restart with a wrong setting should not."""
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 60.0
_FORGOTTEN_AFTER_S: Final = 600.0
_IDENTITIES: Final = 10_000


class Slowing:
    """Counts failures per identity; after ten, each doubles the wait, up to a minute."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @contextmanager
    def attempt(self, identity: str) -> Iterator[None]:
        """One attempt of an identity; `Unauthenticated` from the block counts against it.

        A success forgives nothing: otherwise guesses between good calls would be free.

        Raises:
            Exhausted: it has to wait; says how long. Nothing was done.
        """
        count, last = self._failures.get(identity, (0, 0.0))
        now = self._clock.monotonic()
        if count and now - last >= _FORGOTTEN_AFTER_S:
            del self._failures[identity]
        elif (wait := last + _wait_s(count) - now) > 0:
            raise Exhausted(f"{identity} failed {count} times", retry_after=timedelta(seconds=wait))
        try:
            yield
        except Unauthenticated:
            self._failed(identity)
            raise

    def _failed(self, identity: str) -> None:
        count, _ = self._failures.get(identity, (0, 0.0))
        self._failures[identity] = (count + 1, self._clock.monotonic())
        self._failures.move_to_end(identity)
        if len(self._failures) > _IDENTITIES:
            self._failures.popitem(last=False)


def _wait_s(failures: int) -> float:
    over = failures - FREE_FAILURES
    return 0.0 if over < 0 else min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(over, 32))
