"""Work that goes on as long as the service does, whatever it runs into.

If this fails: a task ends in silence, and nobody looks any more whether a key was
shredded, or is still ours. Keys in memory then stay until their age ends.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_LOGGER = logging.getLogger(__name__)

AGAIN_AFTER: Final = timedelta(seconds=1)


async def keep_running(
    name: str, begin: Callable[[], Awaitable[None]], *, again_after: timedelta = AGAIN_AFTER
) -> None:
    """Awaits `begin()`; begins again when it failed, until it is cancelled or comes to its end by itself.

    Args:
        name: what it is, for the log.
        begin: begins the work.
        again_after: how long after a failure.
    """
    while True:
        try:
            await begin()
        except Exception as error:  # noqa: BLE001  # whatever it was, the work is needed
            # Without the error's text and its frames, which may hold anything.
            _LOGGER.critical("the %s failed and begins again: %s", name, type(error).__name__)
        else:
            return
        await asyncio.sleep(again_after.total_seconds())
