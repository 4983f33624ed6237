"""Tells the transparency log how far the audit of this replica goes.

An audit file shows what was changed in it, and not what was cut off its end. The
heads in the log do, to whoever kept a checkpoint of that log.

If this fails: the end of an audit file can be cut off unseen, back to the last head
that the log, or anything else that is kept elsewhere, has.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from casemate.gate.adapters.audit_lines import Head

AUDIT_HEAD: Final = "audit-head"
"""Kind of the entries."""

TELL_EVERY: Final = timedelta(minutes=1)

_LOGGER = logging.getLogger(__name__)


class AuditHeads:
    """One replica's audit, as its heads are told.

    Args:
        path: the audit file.
        head: gives its last line.
    """

    def __init__(self, *, path: Path, head: Callable[[], Head]) -> None:
        place = f"{socket.gethostname()}:{path.absolute()}"
        # Names the file among all replicas' without telling where it lies.
        self.replica = hashlib.sha256(place.encode()).hexdigest()[:16]
        self._head = head
        self._told = 0

    def news(self) -> dict[str, object] | None:
        """The body of the next entry; nothing while no line was added since the last."""
        head = self._head()
        if head.number == self._told:
            return None
        return {"number": head.number, "replica": self.replica, "sha256": head.digest}

    def tell_to(self, append: Callable[[dict[str, object]], object]) -> bool:
        """As `tell`, where appending blocks."""
        body = self.news()
        if body is None:
            return False
        append(body)
        self._told = int(str(body["number"]))
        return True

    async def tell(self, append: Callable[[dict[str, object]], Awaitable[object]]) -> bool:
        """Has the next body appended, if there is one; whether there was.

        Raises:
            CasemateError: by `append`; it is told again next time.
        """
        body = self.news()
        if body is None:
            return False
        await append(body)
        self._told = int(str(body["number"]))
        return True

    def run_until(
        self,
        ended: threading.Event,
        append: Callable[[dict[str, object]], object],
        *,
        every: timedelta = TELL_EVERY,
    ) -> None:
        """Tells again and again until `ended`: for a thread of its own, where calls block."""
        while not ended.wait(every.total_seconds()):
            try:
                self.tell_to(append)
            except CasemateError as error:
                _LOGGER.warning("the log was not told of the audit's head: %s", error)

    async def run(
        self, append: Callable[[dict[str, object]], Awaitable[object]], *, every: timedelta = TELL_EVERY
    ) -> None:
        """Tells again and again. Runs until cancelled."""
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                await self.tell(append)
            except CasemateError as error:
                _LOGGER.warning("the log was not told of the audit's head: %s", error)
