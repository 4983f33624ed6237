"""What pages someone: stored rows that do not verify, stored data that does not open."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casemate.errors import StoredDataUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOGGER = logging.getLogger(__name__)


class Alarms:
    """Counts and logs what the database owner should not have been able to change.

    Args:
        count: adds one to the counter of this name; `casemate.transport.metrics` has them.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count

    @contextmanager
    def on_authority(self) -> Iterator[None]:
        """Sounds when a row's MAC fails inside; the error goes on."""
        with self._sounding("authority_alarms_total", "a stored row does not verify"):
            yield

    @contextmanager
    def on_integrity(self) -> Iterator[None]:
        """Sounds when sealed data does not open inside; the error goes on."""
        with self._sounding("integrity_failures_total", "stored data does not open"):
            yield

    @contextmanager
    def _sounding(self, counter: str, text: str) -> Iterator[None]:
        try:
            yield
        except StoredDataUnreadable as error:
            self._count(counter)
            _LOGGER.critical("%s: %s", text, error)
            raise
