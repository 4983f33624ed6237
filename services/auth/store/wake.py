"""Hears that something changed. What changed is read elsewhere; a lost wake-up costs a heartbeat's time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from casemate.errors import CasemateError
from casemate.settings import DatabaseSettings
from casemate.storage.pool import open_connection, storage_errors
from services.auth.store.changes import CHANNEL

_PAUSE_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class WakeListener:
    """Holds a connection of its own, and opens another when that one ends."""

    def __init__(self, *, settings: DatabaseSettings, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._wake = wake

    async def run(self) -> None:
        """Listens until cancelled."""
        while True:
            try:
                await self._listen()
            except CasemateError as error:
                _log.warning("cannot listen for changes, polling goes on: %s", error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self) -> None:
        ended = asyncio.Event()
        connection = await open_connection(self._settings)
        try:
            connection.add_termination_listener(lambda _connection: ended.set())
            # A primary that went away is noticed now, and not by the next heartbeat.
            connection.add_termination_listener(lambda _connection: self._wake())
            with storage_errors():
                await connection.add_listener(CHANNEL, lambda *_news: self._wake())
            # Whatever was committed while nobody listened is read now.
            self._wake()
            await ended.wait()
        finally:
            connection.terminate()
