"""Whether what a model was trained on is still to be relied on, asked of datasets when it loads and ever after.

A dataset is quarantined when the key that signed it was stolen: whoever holds
that key may have taught the model what they liked. Such a version is not
loaded, and one that runs is taken out, as one of a revoked publisher is. What
retention or a shredding took away casts no doubt on what was trained on it.

While datasets does not answer, its last word stands, and for roots that it was
never asked about here the word that it gave when the version was published:
otherwise a restart while datasets is down would end every prediction.

If this fails: a model goes on that was trained on what a thief signed. The
report on that key's compromise names it all the same.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from casemate.errors import CasemateError, FailedPrecondition, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_AT_ONCE = 500
_LOGGER = logging.getLogger(__name__)


class Judge(Protocol):
    """Who knows datasets."""

    def quarantined(self, tenant: str, roots: Sequence[bytes]) -> frozenset[bytes]:
        """Those of the roots that are quarantined.

        Raises:
            CasemateError: no answer came.
        """
        ...


class TrainingData:
    """What datasets said of roots; safe from many threads.

    Args:
        judge: knows.
        pause: how long it is left alone when it did not answer.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self, judge: Judge, *, pause: timedelta = timedelta(seconds=5), now: Callable[[], float] = time.monotonic
    ) -> None:
        self._judge = judge
        self._pause = pause.total_seconds()
        self._now = now
        self._lock = threading.Lock()
        self._quarantined: dict[str, frozenset[bytes]] = {}
        self._silent_until: float | None = None

    @property
    def ask_again_in(self) -> float | None:
        """Seconds until it should be asked again because it did not answer; None: it did."""
        silent = self._silent_until
        return None if silent is None else max(0.0, silent - self._now())

    def require_sound(self, tenant: str, roots: Collection[bytes]) -> None:
        """Returns when none of the roots is known to be quarantined.

        Raises:
            FailedPrecondition: reason DATASET_UNKNOWN: one is.
        """
        if self.quarantined(tenant, roots):
            raise FailedPrecondition("trained on a dataset that is quarantined", reason=Reason.DATASET_UNKNOWN)

    def quarantined(self, tenant: str, roots: Collection[bytes]) -> frozenset[bytes]:
        """Those of the roots that are quarantined, by the last word that there is."""
        asked = frozenset(roots)
        if asked and (self._silent_until is None or self._now() >= self._silent_until):
            self._ask(tenant, asked)
        return self._quarantined.get(tenant, frozenset()) & asked

    def _ask(self, tenant: str, asked: frozenset[bytes]) -> None:
        ordered = sorted(asked)
        try:
            said = [
                self._judge.quarantined(tenant, ordered[start : start + _AT_ONCE])
                for start in range(0, len(ordered), _AT_ONCE)
            ]
        except CasemateError as error:
            self._silent_until = self._now() + self._pause
            _LOGGER.warning("datasets did not say which roots are quarantined, its last word stands: %s", error)
            return
        self._silent_until = None
        with self._lock:
            known = self._quarantined.get(tenant, frozenset())
            self._quarantined[tenant] = (known - asked) | frozenset().union(*said)
