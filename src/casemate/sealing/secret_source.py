"""Passwords and other secrets that somebody else keeps, and that change while we run.

A source reads one by its name: from files (`secret_files`), or from AWS Secrets
Manager (`aws_secrets`). `WatchedSecret` reads it again and again, so that a rotation
needs no restart.

If this fails: the process goes on with an old secret until whoever checks it refuses;
it never goes on without one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NoReturn, Protocol

from casemate.errors import CasemateError
from casemate.secret import Secret

_LOGGER = logging.getLogger(__name__)
_READ_SECONDS: Final = 10.0


class SecretSource(Protocol):
    """Where secrets are kept."""

    async def read(self, name: str) -> Secret[bytes]:
        """The secret's value as it is now; never one that was remembered.

        Raises:
            ConfigurationError: there is none of this name, or it may not be read or used.
            Unavailable: the source cannot be reached; trying again may help.
        """
        ...


class WatchedSecret:
    """One secret, kept current. Made by `open`.

    A read that fails leaves the value in memory as it is. So does an empty one, which no
    source gives.
    """

    __slots__ = ("_current", "_failing", "_interval_seconds", "_name", "_source", "_subscribers")

    def __init__(self, *, source: SecretSource, name: str, current: Secret[bytes], interval: timedelta) -> None:
        self._source = source
        self._name = name
        self._current = current
        self._interval_seconds = interval.total_seconds()
        self._failing = False
        self._subscribers: dict[object, Callable[[Secret[bytes]], None]] = {}

    @classmethod
    async def open(
        cls, source: SecretSource, name: str, *, interval: timedelta = timedelta(seconds=5)
    ) -> WatchedSecret:
        """The secret with its first value; `run` keeps it current from then on.

        Args:
            source: where it is kept.
            name: its name there.
            interval: between two reads. AWS bills each one.

        Raises:
            ConfigurationError, Unavailable: as `SecretSource.read`.
        """
        return cls(source=source, name=name, current=await source.read(name), interval=interval)

    @property
    def current(self) -> Secret[bytes]:
        """The value as it was read last: a read of memory."""
        return self._current

    def subscribe(self, callback: Callable[[Secret[bytes]], None]) -> Callable[[], None]:
        """Has `callback` called with each new value, from the task that looks.

        Returns:
            A function that ends the subscription.
        """
        key = object()
        self._subscribers[key] = callback

        def end() -> None:
            self._subscribers.pop(key, None)

        return end

    async def look(self) -> bool:
        """Reads once; true if the value is another one now."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                found = await self._source.read(self._name)
        except (CasemateError, TimeoutError) as error:
            if not self._failing:
                _LOGGER.warning("secret %s cannot be read, the old value stays: %s", self._name, error)
            self._failing = True
            return False
        self._failing = False
        if found == self._current:
            return False
        self._current = found
        _LOGGER.info("secret %s has a new value", self._name)
        self._tell(found)
        return True

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.look()

    def __repr__(self) -> str:
        return f"WatchedSecret({self._name})"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a WatchedSecret is not serialized")

    def _tell(self, secret: Secret[bytes]) -> None:
        for callback in tuple(self._subscribers.values()):
            try:
                callback(secret)
            except Exception as error:  # noqa: BLE001  # one subscriber's fault must not keep the others on the old value
                # Without its text, which may quote the value that it could not take.
                fault = type(error).__name__
                _LOGGER.error("a subscriber failed to take the new value of secret %s: %s", self._name, fault)  # noqa: TRY400
