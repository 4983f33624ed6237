"""A key-encryption key that is left alone for a while after it failed to answer.

Without it, every caller waits out the time limit of a provider that is down, and
all of them press on it again as it comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final, TypeVar

from casemate.clock import Clock
from casemate.errors import CasemateError, Unavailable
from casemate.sealing.kek import KekState, KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey

T = TypeVar("T")

DEFAULT_FAILURES: Final = 5
DEFAULT_PAUSE: Final = timedelta(seconds=5)

_LOGGER = logging.getLogger(__name__)


class Breaker:
    """Lets calls of one provider through, or refuses them during a pause after failures in a row. For one event loop.

    Args:
        what: the provider, for the log.
        clock: for the pauses.
        failures: how many calls in a row go unanswered before a pause.
        pause: how long.
    """

    __slots__ = ("_clock", "_failed", "_failures", "_pause", "_trying", "_until", "_what")

    def __init__(
        self,
        what: str,
        *,
        clock: Clock,
        failures: int = DEFAULT_FAILURES,
        pause: timedelta = DEFAULT_PAUSE,
    ) -> None:
        self._what = what
        self._clock = clock
        self._failures = failures
        self._pause = pause.total_seconds()
        self._failed = 0
        self._until = 0.0
        self._trying = False

    def admit(self) -> bool:
        """Lets a call pass, or refuses it before it is made; says whether it is the one that tries.

        Raises:
            Unavailable: there is a pause; says for how long.
        """
        if self._failed < self._failures:
            return False
        left = self._until - self._clock.monotonic()
        if left > 0 or self._trying:
            wait = timedelta(seconds=max(left, 1))
            raise Unavailable(f"{self._what} has not been answering", retry_after=wait)
        self._trying = True
        return True

    async def watch(self, call: Awaitable[T], *, trying: bool) -> T:
        """Awaits a call and notes how it ended. A refusal and damaged bytes are answers."""
        try:
            result = await call
        except Unavailable:
            self._failed += 1
            if self._failed >= self._failures:
                self._until = self._clock.monotonic() + self._pause
                _LOGGER.warning("%s does not answer", self._what, extra={"failures": self._failed})
            raise
        except CasemateError:
            self._failed = 0  # It answered, whatever it said.
            raise
        finally:
            if trying:
                self._trying = False  # Also where its caller gave up, which says nothing of the provider.
        self._failed = 0
        return result


class GuardedKek:
    """`kek`, refused at once with `Unavailable` during a pause after failures in a row.

    After the pause one call goes through: if it is answered, all do again, and if
    not, the next pause begins. A refusal or damaged bytes are answers. `state`
    always asks, so that health checks see the truth, and its answer ends a pause.
    Implements `kek.KeyEncryptionKey`; for one event loop.

    Args:
        kek: the provider.
        clock: for the pauses.
        failures: how many calls in a row go unanswered before a pause.
        pause: how long.
    """

    __slots__ = ("_breaker", "_kek")

    def __init__(
        self,
        kek: KeyEncryptionKey,
        *,
        clock: Clock,
        failures: int = DEFAULT_FAILURES,
        pause: timedelta = DEFAULT_PAUSE,
    ) -> None:
        self._kek = kek
        self._breaker = Breaker("a key-encryption key's provider", clock=clock, failures=failures, pause=pause)

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`."""
        trying = self._breaker.admit()
        return await self._breaker.watch(self._kek.generate_data_key(context), trying=trying)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._breaker.admit()
        return await self._breaker.watch(self._kek.wrap(key, context), trying=trying)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._breaker.admit()
        return await self._breaker.watch(self._kek.unwrap(wrapped, context), trying=trying)

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._breaker.admit()
        return await self._breaker.watch(self._kek.rewrap(wrapped, context), trying=trying)

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`. Asks during a pause too."""
        return await self._breaker.watch(self._kek.state(), trying=False)
