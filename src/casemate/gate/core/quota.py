"""How much one caller and one tenant may have at once, and how fast.

If this fails: one caller takes the server's threads from the others until their
deadlines; nobody gains a right.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from casemate.errors import Exhausted

if TYPE_CHECKING:
    from casemate.clock import Clock

_SWEEP_AT = 10_000
"""Idle buckets are looked for when there are this many."""


class Lease(Protocol):
    """A place among the calls that run; given back exactly once."""

    def release(self) -> None:
        """Gives the place back. A second time has no effect."""
        ...


class Quota(Protocol):
    """Shares what a server has among tenants and their callers."""

    def enter(self, *, tenant: str, caller: str) -> Lease:
        """Takes a place among the running calls, at headers.

        Raises:
            Exhausted: the caller or its tenant has all of its share.
        """
        ...

    def spend(self, *, tenant: str, caller: str) -> None:
        """Counts one call against the caller's rate, once it is proven.

        Raises:
            Exhausted: too fast; says when to come again.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The shares of a server.

    Attributes:
        caller_concurrency: calls that one caller may have running.
        tenant_concurrency: calls that all callers of a tenant may have running.
        calls_per_second: rate of one caller in the long run.
        burst: calls that a caller may make at once after a pause.
    """

    caller_concurrency: int = 64
    tenant_concurrency: int = 256
    calls_per_second: float = 5000.0
    burst: int = 10_000


class LocalQuota:
    """Shares within one process."""

    def __init__(self, *, clock: Clock, shares: Shares | None = None) -> None:
        self._clock = clock
        self._shares = shares if shares is not None else Shares()
        self._lock = threading.Lock()
        self._callers: dict[str, int] = {}
        self._tenants: dict[str, int] = {}
        self._left: deque[tuple[str, str]] = deque()
        self._buckets: dict[str, tuple[float, float]] = {}

    def enter(self, *, tenant: str, caller: str) -> Lease:
        """Takes a place for a caller of a tenant.

        Raises:
            Exhausted: the caller or its tenant has all of its share.
        """
        with self._lock:
            if self._left:
                self._count_left()
            callers, tenants = self._callers.get(caller, 0), self._tenants.get(tenant, 0)
            if callers >= self._shares.caller_concurrency or tenants >= self._shares.tenant_concurrency:
                raise Exhausted("too many calls at once", retry_after=timedelta(milliseconds=100))
            self._callers[caller] = callers + 1
            self._tenants[tenant] = tenants + 1
        return _LocalLease(self, tenant, caller)

    @property
    def running(self) -> int:
        """Calls that hold a place now."""
        with self._lock:
            self._count_left()
            return sum(self._callers.values())

    def spend(self, *, tenant: str, caller: str) -> None:  # noqa: ARG002  # the protocol's; tenants have no rate yet
        """Counts one call against the caller's token bucket.

        Raises:
            Exhausted: too fast.
        """
        shares = self._shares
        now = self._clock.monotonic()
        with self._lock:
            left, since = self._buckets.get(caller, (float(shares.burst), now))
            left = min(float(shares.burst), left + (now - since) * shares.calls_per_second)
            if left < 1:
                wait = timedelta(seconds=(1 - left) / shares.calls_per_second)
                raise Exhausted("too fast", retry_after=wait)
            self._buckets[caller] = (left - 1, now)
            if len(self._buckets) > _SWEEP_AT:
                self._sweep(now)

    def leave(self, tenant: str, caller: str) -> None:
        """Gives a place back. Takes no lock: it may run wherever an object dies, even inside `enter`."""
        self._left.append((tenant, caller))

    def _count_left(self) -> None:
        while self._left:
            tenant, caller = self._left.popleft()
            _count_down(self._tenants, tenant)
            _count_down(self._callers, caller)

    def _sweep(self, now: float) -> None:
        """Forgets callers whose bucket is full again: forgetting them changes nothing."""
        refill_s = self._shares.burst / self._shares.calls_per_second
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if now - bucket[1] < refill_s}


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
