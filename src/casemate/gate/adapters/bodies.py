"""Bodies that do not arrive must not hold up good callers.

A handler thread of the synchronous server waits for its request. Nearly all
arrive with their headers; a caller that sends many headers and no bodies would
hold every thread. So waits are watched: whoever lets many wait too long may, for
a while, have only a few at once, and is refused beyond that before it waits.

If this fails: one authenticated caller holds threads until `within`, and others wait as long.
"""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from casemate.errors import DeadlineExceeded, Exhausted
from casemate.gate.adapters.early_end import cut
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.clock import Clock
    from casemate.errors import CasemateError
    from casemate.gate.core.admission import Admission

LATE_S: Final = 1.0
"""Seconds after which a body is late: a thousand times what one needs that comes with its headers."""
TICK: Final = timedelta(seconds=0.25)
"""How often waits are looked at."""
LATE_CALLS: Final = 4
"""Late bodies that a caller may have at once; with more it is a suspect, and then this is all it may wait for."""
MEMORY_S: Final = 10.0
"""Seconds for which a suspect is remembered."""


class Cancellable(Protocol):
    """What can be ended from another thread: a call's context."""

    def cancel(self) -> object:
        """Ends the call."""
        ...


class Bodies:
    """The bodies that are waited for now, by call; ticked by a watchdog.

    Args:
        clock: of the watchdog.
        within: how long a body may take.
        ended: is told of each call that ends for its body, with the reason.
    """

    def __init__(
        self, *, clock: Clock, within: timedelta, ended: Callable[[Admission, CasemateError], None] | None = None
    ) -> None:
        self._clock = clock
        self._within_s = within.total_seconds()
        self._ended = ended
        self._waiting: dict[int, tuple[Cancellable, str, float, Admission | None]] = {}
        self._suspects: dict[str, float] = {}
        self._looked_at: float | None = None
        self._ending = threading.Lock()

    def begin(self, context: Cancellable, caller: str, admission: Admission | None = None) -> None:
        """Notes that a body is waited for from now on.

        Raises:
            Exhausted: the caller was late lately, and has its few under way.
        """
        if self._suspects and self._is_suspect(caller):
            under_way = sum(1 for _, other, _, _ in list(self._waiting.values()) if other == caller)
            if under_way >= LATE_CALLS:
                raise Exhausted("bodies of this caller do not arrive", retry_after=timedelta(seconds=MEMORY_S))
        self._waiting[id(context)] = (context, caller, self._clock.monotonic(), admission)

    def end(self, context: Cancellable) -> None:
        """Notes that the body arrived, or will not: once for each `begin`.

        Raises:
            DeadlineExceeded: it is too late. The call is ended for it, and that is noted; so it must not run.
        """
        if self._waiting.pop(id(context), None) is None:
            with self._ending:  # whoever ends it notes that first
                pass
            raise DeadlineExceeded("the body arrived while its call was ended for it")

    def forget(self, context: Cancellable) -> None:
        """Notes that the body is waited for no more, and the call has ended for another reason."""
        self._waiting.pop(id(context), None)

    def tick(self, monotonic: float) -> None:
        """Ends waits that took too long, and those of suspects beyond their few."""
        before, self._looked_at = self._looked_at, monotonic
        # After a standstill of ours every body looks late: it may have arrived, and nobody has looked.
        if before is not None and monotonic - before < LATE_S:
            self._judge(monotonic)
        for caller, until in list(self._suspects.items()):
            if monotonic >= until:
                self._suspects.pop(caller, None)

    def _judge(self, monotonic: float) -> None:
        late: Counter[str] = Counter()
        for context, caller, since, admission in list(self._waiting.values()):
            if monotonic - since >= self._within_s:
                self._end_late(context, admission)
            elif monotonic - since >= LATE_S:
                late[caller] += 1
                if late[caller] > LATE_CALLS:
                    self._suspects[caller] = monotonic + MEMORY_S
                    self._end_late(context, admission)

    def _end_late(self, context: Cancellable, admission: Admission | None) -> None:
        error = DeadlineExceeded("the body did not arrive")
        with self._ending:
            # Whoever takes it out decides: a body of this very instant is served, or its call is ended, and never both.
            if self._waiting.pop(id(context), None) is None:
                return
            if self._ended is not None and admission is not None:
                self._ended(admission, error)
        if admission is None:
            context.cancel()
        else:
            cut(context, to_status(error, request_id=admission.request_id), request_id=admission.request_id)

    def _is_suspect(self, caller: str) -> bool:
        return self._suspects.get(caller, 0.0) > self._clock.monotonic()
