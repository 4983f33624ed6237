"""How many bytes of requests a server holds for calls that wait.

A request's size is known when it is there. So whoever asks for one reserves the largest that may
come, gives back what it did not need once it has come, and the rest when the call waits no more. Where nothing is
left to reserve, a call is not asked for its request: it waits in its caller's line, and its bytes wait with
the peer, by flow control. Lines are served in turn. No caller reserves more than half, and no tenant
more than seven eighths.

If this fails: one tenant's calls fill the memory with requests that wait for threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB: Final = 1024 * 1024
MOST_BYTES: Final = 4096 * _MIB
"""More than that is held by no server, unless eight of its largest requests are more."""
FEWEST_REQUESTS: Final = 8
"""Largest requests that there is room for, whatever the memory is."""
_MEMORY_OVER: Final = 4
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")


def default_budget(largest: int, *, memory: int | None = None) -> int:
    """A quarter of the memory of this machine or container, four gibibytes at most, eight largest requests at least.

    Args:
        largest: bytes of the largest request.
        memory: bytes; None to look.
    """
    if memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with suppress(OSError, ValueError):  # no cgroup of version 2, or one without a limit
            memory = min(memory, int(_CGROUP.read_text()))
    return max(FEWEST_REQUESTS * largest, min(memory // _MEMORY_OVER, MOST_BYTES))


class ByteBudget:
    """Bytes that are reserved and held. Safe in threads.

    Args:
        total: bytes of all.
        largest: bytes of the largest request.
    """

    def __init__(self, *, total: int, largest: int) -> None:
        self._total, self._largest = max(total, largest), largest
        # A caller may always have one, or it could never call.
        self._of_caller, self._of_tenant = max(total // 2, largest), max(total * 7 // 8, largest)
        self._turn = threading.Lock()
        self._held = 0
        self._shares: dict[str, int] = {}
        self._lines: dict[tuple[str, str], deque[Held]] = {}
        self._begun: deque[Held] = deque()
        self._going = False

    @property
    def held(self) -> int:
        """Bytes that are reserved or held now."""
        return self._held

    @property
    def waiting(self) -> int:
        """Calls that are not asked for their request yet."""
        with self._turn:
            return sum(map(len, self._lines.values()))

    def ask(self, *, tenant: str, caller: str, go: Callable[[], object]) -> Held:
        """Calls `go` once there is room for a request: now, or from whichever thread makes some.

        Args:
            tenant: whose share.
            caller: which of the tenant's.
            go: asks for the request. Neither blocks nor raises.
        """
        held = Held(self, (f"t {tenant}", f"c {tenant} {caller}"), go)
        with self._turn:
            now = held.shares not in self._lines and self._fits(held.shares)
            if now:
                self._take(held)
            else:
                self._lines.setdefault(held.shares, deque()).append(held)
        if now:
            held.begin()
        return held

    def give(self, held: Held, keep: int) -> None:
        """Gives back what a call has reserved but for `keep` bytes."""
        with self._turn:
            if keep >= held.bytes:
                return
            back, held.bytes = held.bytes - keep, keep
            self._held -= back
            for share in held.shares:
                left = self._shares[share] - back
                if left:
                    self._shares[share] = left
                else:
                    del self._shares[share]
            if self._lines:
                self._begin()
            if self._going or not self._begun:
                return
            self._going = True
        self._go_on()

    def leave(self, held: Held) -> bool:
        """Takes a call out of its line; False if it was in none."""
        with self._turn:
            line = self._lines.get(held.shares)
            if line is None or held not in line:
                return False
            line.remove(held)
            held.forget()
            if not line:
                del self._lines[held.shares]
            return True

    def _go_on(self) -> None:
        """One after the other, and never one inside of the other: what one does may make room for the next."""
        while True:
            with self._turn:
                if not self._begun:
                    self._going = False
                    return
                held = self._begun.popleft()
            held.begin()

    def _fits(self, shares: tuple[str, str]) -> bool:
        tenant, caller = shares
        largest, known = self._largest, self._shares
        return (
            self._held + largest <= self._total
            and known.get(caller, 0) + largest <= self._of_caller
            and known.get(tenant, 0) + largest <= self._of_tenant
        )

    def _take(self, held: Held) -> None:
        held.bytes = self._largest
        self._held += self._largest
        for share in held.shares:
            self._shares[share] = self._shares.get(share, 0) + self._largest

    def _begin(self) -> None:
        """Those whose turn it is, as many as there is room for."""
        while self._held + self._largest <= self._total:
            shares = next((each for each in self._lines if self._fits(each)), None)
            if shares is None:
                return
            line = self._lines.pop(shares)
            held = line.popleft()
            if line:
                self._lines[shares] = line  # to the end of the turn
            self._take(held)
            self._begun.append(held)


class Held:
    """What one call has of a budget.

    Attributes:
        bytes: reserved or held now.
        shares: whose they are.
    """

    __slots__ = ("_budget", "_go", "bytes", "shares")

    def __init__(self, budget: ByteBudget, shares: tuple[str, str], go: Callable[[], object]) -> None:
        self._budget = budget
        self.shares = shares
        self._go: Callable[[], object] | None = go
        self.bytes = 0

    def begin(self) -> None:
        """There is room: asks for the request."""
        go = self._go
        self.forget()
        if go is not None:
            go()

    def forget(self) -> None:
        """Nobody is to be asked any more."""
        # The call holds this. To hold it in turn would be a ring, and core counts a call against its connection for as
        # long as Python holds anything of it.
        self._go = None

    def arrived(self, size: int) -> None:
        """The request is there, and so large."""
        self._budget.give(self, size)

    def end(self) -> None:
        """The call waits no more: it runs, or has ended. A second time has no effect."""
        self._budget.give(self, 0)

    def leave(self) -> bool:
        """The call ends before there was room for its request; False if there was, and `go` was called or will be."""
        return self._budget.leave(self)


def budget_of(largest: int) -> ByteBudget:
    """The budget of a server whose largest request has so many bytes."""
    return ByteBudget(total=default_budget(largest), largest=largest)
