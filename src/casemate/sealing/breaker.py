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

    __slots__ = ("_clock", "_failed", "_failures", "_kek", "_pause", "_trying", "_until")

    def __init__(
        self,
        kek: KeyEncryptionKey,
        *,
        clock: Clock,
        failures: int = DEFAULT_FAILURES,
        pause: timedelta = DEFAULT_PAUSE,
    ) -> None:
        self._kek = kek
        self._clock = clock
        self._failures = failures
        self._pause = pause.total_seconds()
        self._failed = 0
        self._until = 0.0
        self._trying = False

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`."""
        trying = self._admit()
        return await self._watched(self._kek.generate_data_key(context), trying=trying)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._admit()
        return await self._watched(self._kek.wrap(key, context), trying=trying)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._admit()
        return await self._watched(self._kek.unwrap(wrapped, context), trying=trying)

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        trying = self._admit()
        return await self._watched(self._kek.rewrap(wrapped, context), trying=trying)

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`. Asks during a pause too."""
        return await self._watched(self._kek.state(), trying=False)

    def _admit(self) -> bool:
        """Lets a call pass, or refuses it before it is made; says whether it is the one that tries."""
        if self._failed < self._failures:
            return False
        left = self._until - self._clock.monotonic()
        if left > 0 or self._trying:
            wait = timedelta(seconds=max(left, 1))
            raise Unavailable("the key-encryption key's provider has not been answering", retry_after=wait)
        self._trying = True
        return True

    async def _watched(self, call: Awaitable[T], *, trying: bool) -> T:
        try:
            result = await call
        except Unavailable:
            self._failed += 1
            if self._failed >= self._failures:
                self._until = self._clock.monotonic() + self._pause
                _LOGGER.warning("a key-encryption key's provider does not answer", extra={"failures": self._failed})
            raise
        except CasemateError:
            self._failed = 0  # It answered, whatever it said.
            raise
        finally:
            if trying:
                self._trying = False  # Also where its caller gave up, which says nothing of the provider.
        self._failed = 0
        return result
