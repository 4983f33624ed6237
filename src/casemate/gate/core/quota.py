"""How much one tenant, one caller and one resource may have at once, and how fast.

Places among the running calls are taken at headers; rates are counted before a
request is parsed, first the tenant's and then the caller's; the resource's when
the request has named it. A tenant alone may fill the server. As soon as another
one calls, each has its share of the places, and so a flood of one finds the
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
"""Idle buckets are looked for when there are this many."""
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
        """Takes a place among the running calls, at headers.

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
        self._callers: dict[str, int] = {}
        self._tenants: dict[str, int] = {}
        self._left: deque[tuple[str, str]] = deque()
        self._active: dict[str, float] = {}
        self._of_callers = _Buckets(shares.calls_per_second, shares.burst)
        self._of_tenants = _Buckets(shares.tenant_calls_per_second, shares.tenant_burst)
        self._of_resources = _Buckets(shares.resource_calls_per_second, shares.resource_burst)

    def enter(self, *, tenant: str, caller: str) -> Lease:
        """Takes a place for a caller of a tenant.

        Raises:
            Exhausted: the caller or its tenant has all of its share.
        """
        shares = self._shares
        with self._lock:
            if self._left:
                self._count_left()
            callers, tenants = self._callers.get(caller, 0), self._tenants.get(tenant, 0)
            most = shares.tenant_concurrency
            if shares.places is not None:
                most = self._share(tenant, shares.places, most)
            if callers >= shares.caller_concurrency or tenants >= most:
                raise Exhausted("too many calls at once", retry_after=RETRY_PLACE)
            self._callers[caller] = callers + 1
            self._tenants[tenant] = tenants + 1
        return _LocalLease(self, tenant, caller)

    @property
    def running(self) -> int:
        """Calls that hold a place now."""
        with self._lock:
            self._count_left()
            return sum(self._callers.values())

    def spend(self, *, tenant: str, caller: str) -> None:
        """Counts one call against both token buckets, or against neither.

        A caller that is refused for its own haste does not use up its tenant's rate.

        Raises:
            Exhausted: too fast.
        """
        now = self._clock.monotonic()
        with self._lock:
            of_tenant = self._of_tenants.ready(tenant, now)
            self._of_callers.take(caller, now, self._of_callers.ready(caller, now))
            self._of_tenants.take(tenant, now, of_tenant)

    def spend_on(self, *, tenant: str, resource: str) -> None:
        """Counts one call against a resource's token bucket.

        Raises:
            Exhausted: too fast.
        """
        now = self._clock.monotonic()
        name = f"{tenant}/{resource}"
        with self._lock:
            self._of_resources.take(name, now, self._of_resources.ready(name, now))

    def leave(self, tenant: str, caller: str) -> None:
        """Gives a place back. Takes no lock: it may run wherever an object dies, even inside `enter`."""
        self._left.append((tenant, caller))

    def _share(self, tenant: str, places: int, alone: int) -> int:
        """The places that a tenant may hold now: all while it is alone, an equal part otherwise."""
        now, active = self._clock.monotonic(), self._active
        active[tenant] = now
        if len(active) > 1:
            for other in [name for name, seen in active.items() if now - seen > ACTIVE_S and name not in self._tenants]:
                del active[other]
        return alone if len(active) == 1 else min(alone, max(1, places // len(active)))

    def _count_left(self) -> None:
        while self._left:
            tenant, caller = self._left.popleft()
            _count_down(self._tenants, tenant)
            _count_down(self._callers, caller)


class _Buckets:
    """Token buckets of one size, by name; a bucket that is full again is forgotten."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._buckets: dict[str, tuple[float, float]] = {}

    def ready(self, name: str, now: float) -> float:
        """What is in the bucket.

        Raises:
            Exhausted: less than one call; says when there will be one.
        """
        left, since = self._buckets.get(name, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_second)
        if left < 1:
            raise Exhausted("too fast", retry_after=timedelta(seconds=(1 - left) / self._per_second))
        return left

    def take(self, name: str, now: float, left: float) -> None:
        """Takes one call out of what `ready` found."""
        self._buckets[name] = (left - 1, now)
        if len(self._buckets) > _SWEEP_AT:
            refill_s = self._burst / self._per_second
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < refill_s}


class _LocalLease:
    __slots__ = ("_caller", "_quota", "_tenant")

    def __init__(self, quota: LocalQuota, tenant: str, caller: str) -> None:
        self._quota: LocalQuota | None = quota
        self._tenant = tenant
        self._caller = caller

    def release(self) -> None:
        quota, self._quota = self._quota, None
        if quota is not None:
            quota.leave(self._tenant, self._caller)


def _count_down(counts: dict[str, int], name: str) -> None:
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]
