"""How much one tenant, one caller and one resource may have at once, and how fast.

Places among the running calls are taken, and rates counted, once the caller is
proven and before its request is read: first the tenant's and then the caller's; the
resource's when the request has named it. A tenant alone may fill the server. As soon as
another one calls, each has its share of the places, and so a flood of one finds the
other's places free.

If this fails: one caller takes the server's threads from the others until their
deadlines; nobody gains a right.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from casemate.errors import Exhausted

if TYPE_CHECKING:
    from casemate.clock import Clock

_SWEEP_AT = 10_000
"""Idle accounts are looked for when there are this many."""
ACTIVE_S: Final = 1.0
"""Seconds after its last call for which a tenant's share is kept free."""
RETRY_PLACE: Final = timedelta(milliseconds=100)
"""When a place is worth asking for again: calls take milliseconds."""


class Lease(Protocol):
    """A place among the calls that run; given back exactly once."""

    def release(self) -> None:
        """Gives the place back. A second time has no effect."""
        ...


class Quota(Protocol):
    """Shares what a server has among tenants, their callers and their resources."""

    def enter(self, *, tenant: str, caller: str) -> Lease:
        """Takes a place among the running calls, once the caller is proven.

        Raises:
            Exhausted: the caller or its tenant has all of its share.
        """
        ...

    def spend(self, *, tenant: str, caller: str) -> None:
        """Counts one call against the tenant's and the caller's rate, once the caller is proven.

        Raises:
            Exhausted: too fast; says when to come again.
        """
        ...

    def spend_on(self, *, tenant: str, resource: str) -> None:
        """Counts one call against the rate of a resource, once the grant for it is proven.

        Raises:
            Exhausted: too fast; says when to come again.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The shares of a server.

    Attributes:
        places: calls that run at once; a synchronous server's threads. While several tenants
            call, each may hold an equal part of them. None: nothing is divided.
        caller_concurrency: calls that one caller may have running or waiting.
        tenant_concurrency: calls that all callers of a tenant may have running or waiting.
        calls_per_second: rate of one caller in the long run.
        burst: calls that a caller may make at once after a pause.
        tenant_calls_per_second: likewise of all callers of a tenant.
        tenant_burst: likewise.
        resource_calls_per_second: likewise on one resource, by whomever.
        resource_burst: likewise.
    """

    places: int | None = None
    caller_concurrency: int = 64
    tenant_concurrency: int = 256
    calls_per_second: float = 5_000.0
    burst: int = 10_000
    tenant_calls_per_second: float = 20_000.0
    tenant_burst: int = 40_000
    resource_calls_per_second: float = 20_000.0
    resource_burst: int = 40_000


class LocalQuota:
    """Shares within one process."""

    def __init__(self, *, clock: Clock, shares: Shares | None = None) -> None:
        self._clock = clock
        self._shares = shares = shares if shares is not None else Shares()
        self._lock = threading.Lock()
        self._left: deque[tuple[_Account, _Account]] = deque()
        self._active: dict[str, float] = {}
        self._callers = _Accounts(clock, shares.calls_per_second, shares.burst)
        self._tenants = _Accounts(clock, shares.tenant_calls_per_second, shares.tenant_burst)
        self._resources = _Accounts(clock, shares.resource_calls_per_second, shares.resource_burst)

    def enter(self, *, tenant: str, caller: str) -> Lease:
        """Takes a place for a caller of a tenant.

        Raises:
            Exhausted: the caller or its tenant has all of its share.
        """
        shares = self._shares
        with self._lock:
            if self._left:
                self._count_left()
            of_caller, of_tenant = self._callers[caller], self._tenants[tenant]
            most = shares.tenant_concurrency
            if shares.places is not None:
                most = self._share(tenant, shares.places, most)
            if of_caller.running >= shares.caller_concurrency or of_tenant.running >= most:
                raise Exhausted("too many calls at once", retry_after=RETRY_PLACE)
            of_caller.running += 1
            of_tenant.running += 1
        return _LocalLease(self._left, (of_tenant, of_caller))

    @property
    def running(self) -> int:
        """Calls that hold a place now."""
        with self._lock:
            self._count_left()
            return sum(account.running for account in self._callers.values())

    def spend(self, *, tenant: str, caller: str) -> None:
        """Counts one call against both token buckets, or against neither.

        A caller that is refused for its own haste does not use up its tenant's rate.

        Raises:
            Exhausted: too fast.
        """
        now = self._clock.monotonic()
        with self._lock:
            of_tenant, of_caller = self._tenants[tenant], self._callers[caller]
            left_to_tenant, left_to_caller = of_tenant.filled(now), of_caller.filled(now)
            of_tenant.left, of_tenant.since = left_to_tenant - 1, now
            of_caller.left, of_caller.since = left_to_caller - 1, now

    def spend_on(self, *, tenant: str, resource: str) -> None:
        """Counts one call against a resource's token bucket.

        Raises:
            Exhausted: too fast.
        """
        now = self._clock.monotonic()
        with self._lock:
            account = self._resources[f"{tenant}/{resource}"]
            left = account.filled(now)
            account.left, account.since = left - 1, now

    def _share(self, tenant: str, places: int, alone: int) -> int:
        """The places that a tenant may hold now: all while it is alone, an equal part otherwise."""
        now, active, tenants = self._clock.monotonic(), self._active, self._tenants
        active[tenant] = now
        if len(active) == 1:
            return alone
        for other in [name for name, seen in active.items() if now - seen > ACTIVE_S]:
            account = tenants.get(other)
            if account is None or not account.running:
                del active[other]
        return alone if len(active) == 1 else min(alone, max(1, places // len(active)))

    def _count_left(self) -> None:
        left = self._left
        while left:
            of_tenant, of_caller = left.popleft()
            of_tenant.running -= 1
            of_caller.running -= 1


class _Account:
    """What one name has running, and its token bucket."""

    __slots__ = ("burst", "left", "per_second", "running", "since")

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self.running = 0
        self.left = burst
        self.since = 0.0  # of a full bucket it does not matter

    def filled(self, now: float) -> float:
        """What is in the bucket.

        Raises:
            Exhausted: less than one call; says when there will be one.
        """
        left = self.left + (now - self.since) * self.per_second
        if left < 1:
            raise Exhausted("too fast", retry_after=timedelta(seconds=(1 - left) / self.per_second))
        return left if left < self.burst else self.burst


class _Accounts(dict[str, _Account]):
    """Accounts of one kind by name, opened when they are asked for."""

    def __init__(self, clock: Clock, per_second: float, burst: int) -> None:
        super().__init__()
        self._clock = clock
        self._per_second = per_second
        self._burst = float(burst)

    def __missing__(self, name: str) -> _Account:
        if len(self) >= _SWEEP_AT:
            full_since = self._clock.monotonic() - self._burst / self._per_second
            for idle in [key for key, each in self.items() if not each.running and each.since <= full_since]:
                del self[idle]
        account = self[name] = _Account(self._per_second, self._burst)
        return account


class _LocalLease:
    __slots__ = ("_accounts", "_left")

    def __init__(self, left: deque[tuple[_Account, _Account]], accounts: tuple[_Account, _Account]) -> None:
        self._left = left
        self._accounts: tuple[_Account, _Account] | None = accounts

    def release(self) -> None:
        """Takes no lock: it may run wherever an object dies, even inside `enter`."""
        accounts, self._accounts = self._accounts, None
        if accounts is not None:
            self._left.append(accounts)
