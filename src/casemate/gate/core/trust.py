"""What a service trusts right now: immutable snapshots, and the one place that holds the present one.

If this fails: a revoked token or key keeps working until its own expiry, at most
five minutes for tokens; staleness limits end even that when no news arrives.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.errors import Reason, Unavailable
from casemate.gate.core.grants import GrantIndex
from casemate.gate.core.records import (
    Grant,
    Release,
    RemovedGrant,
    RemovedSigner,
    RemovedTokenKey,
    Revocation,
    TrustChange,
    VerificationKey,
)
from casemate.gate.core.revocations import RevocationIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from casemate.clock import Clock
    from casemate.gate.core.method_policy import MethodPolicy
    from casemate.signing.signers import Signer

STALENESS = timedelta(seconds=300)
"""How long methods go on without news by default: one token life."""
SENSITIVE_STALENESS = timedelta(seconds=30)
"""How long methods marked sensitive go on without news."""


class TrustGap(Exception):
    """News does not follow from what is known; only a snapshot helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSnapshot:
    """All that is trusted at one sequence number.

    Attributes:
        epoch: the life of the database that `sequence` belongs to; empty before any news.
        sequence: everything up to this number is in here.
        issuer: compared exactly with a token's `iss`.
        keys: keys that verify tokens, by `kid`.
        revocations: live revocations.
        grants: live grants.
        signers: signers by key id, the revoked among them.
        releases: releases by (tenant, model).
    """

    epoch: str = ""
    sequence: int = 0
    issuer: str = ""
    keys: Mapping[str, VerificationKey] = field(default_factory=lambda: MappingProxyType({}))
    revocations: RevocationIndex = field(default_factory=RevocationIndex.empty)
    grants: GrantIndex = field(default_factory=GrantIndex.empty)
    signers: Mapping[str, Signer] = field(default_factory=lambda: MappingProxyType({}))
    releases: Mapping[tuple[str, str], Release] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def build(
        cls,
        *,
        epoch: str,
        sequence: int,
        issuer: str,
        keys: Iterable[VerificationKey] = (),
        revocations: Iterable[Revocation] = (),
        grants: Iterable[Grant] = (),
        signers: Iterable[Signer] = (),
        releases: Iterable[Release] = (),
    ) -> TrustSnapshot:
        """A snapshot from plain records."""
        return cls(
            epoch=epoch,
            sequence=sequence,
            issuer=issuer,
            keys=MappingProxyType({key.kid: key for key in keys}),
            revocations=RevocationIndex.of(revocations),
            grants=GrantIndex.of(grants),
            signers=MappingProxyType({signer.key_id: signer for signer in signers}),
            releases=MappingProxyType({(release.tenant, release.model): release for release in releases}),
        )

    def changed(self, changes: Iterable[TrustChange], *, sequence: int) -> TrustSnapshot:
        """This snapshot with `changes` applied in order. Costs a copy of each map that changes."""
        present = replace(self, sequence=sequence)
        for change in changes:
            present = present._with(change)
        return present

    def _with(self, change: TrustChange) -> TrustSnapshot:
        keys, revocations, grants = self.keys, self.revocations, self.grants
        signers, releases = self.signers, self.releases
        match change:
            case VerificationKey():
                keys = MappingProxyType({**keys, change.kid: change})
            case RemovedTokenKey():
                keys = MappingProxyType({kid: key for kid, key in keys.items() if kid != change.kid})
            case Revocation():
                revocations = revocations.with_revocation(change)
            case Grant():
                grants = grants.with_grant(change)
            case RemovedGrant():
                grants = grants.without_grant(change.id)
            case RemovedSigner():
                signers = MappingProxyType({key: signer for key, signer in signers.items() if key != change.key_id})
            case Release():
                releases = MappingProxyType({**releases, (change.tenant, change.model): change})
            case _:
                signers = MappingProxyType({**signers, change.key_id: change})
        return replace(self, keys=keys, revocations=revocations, grants=grants, signers=signers, releases=releases)


class TrustState:
    """Holds the present snapshot; one writer, any number of readers, in any thread."""

    def __init__(
        self, *, staleness: timedelta = STALENESS, sensitive_staleness: timedelta = SENSITIVE_STALENESS
    ) -> None:
        self._limit_s = staleness.total_seconds()
        self._sensitive_limit_s = min(self._limit_s, sensitive_staleness.total_seconds())
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[TrustSnapshot], None]] = []
        self._read_at: float | None = None
        self.current = TrustSnapshot()
        self.key_epoch = 0

    def apply_snapshot(self, snapshot: TrustSnapshot) -> None:
        """Replaces all that was known. Cached verifications end when a key is gone or changed."""
        self._put(snapshot)

    def apply_delta(self, changes: Iterable[TrustChange], *, epoch: str, sequence: int) -> None:
        """Applies what changed since the present sequence number.

        Raises:
            TrustGap: another epoch, or a number that does not lie after the present one.
        """
        present = self.current
        if epoch != present.epoch or sequence <= present.sequence:
            raise TrustGap(f"delta {epoch}/{sequence} after {present.epoch}/{present.sequence}")
        self._put(present.changed(changes, sequence=sequence))

    def confirm(self, *, epoch: str, sequence: int) -> None:
        """Checks that a heartbeat speaks of what is known.

        Raises:
            TrustGap: it speaks of another epoch or number.
        """
        present = self.current
        if epoch != present.epoch or sequence != present.sequence:
            raise TrustGap(f"heartbeat {epoch}/{sequence} at {present.epoch}/{present.sequence}")

    def heard(self, read_at_monotonic: float) -> None:
        """Notes that the primary was read at this moment of our monotonic clock; never goes back."""
        with self._lock:
            if self._read_at is None or read_at_monotonic > self._read_at:
                self._read_at = read_at_monotonic

    def staleness(self, clock: Clock) -> timedelta:
        """Time since the primary was read for the last news; `timedelta.max` before any."""
        if self._read_at is None:
            return timedelta.max
        return timedelta(seconds=max(0.0, clock.monotonic() - self._read_at))

    def require_fresh(self, policy: MethodPolicy, clock: Clock) -> None:
        """Refuses when the news is older than the method bears.

        Raises:
            Unavailable: TRUST_STALE; never an authentication error, so callers keep their tokens and try again.
        """
        self.require_fresh_at(policy, clock.monotonic())

    def require_fresh_at(self, policy: MethodPolicy, monotonic: float) -> None:
        """As `require_fresh`, at a moment of the monotonic clock that was read already."""
        read_at = self._read_at
        if read_at is None or monotonic - read_at > (self._sensitive_limit_s if policy.sensitive else self._limit_s):
            raise Unavailable("the trust feed is silent for too long", reason=Reason.TRUST_STALE)

    def subscribe(self, callback: Callable[[TrustSnapshot], None]) -> Callable[[], None]:
        """Calls `callback` with each new snapshot, in the writer's thread; it must return at once.

        Returns:
            What ends the subscription.
        """
        with self._lock:
            self._callbacks.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def _put(self, snapshot: TrustSnapshot) -> None:
        with self._lock:
            before = self.current.keys
            self.current = snapshot
            if any(snapshot.keys.get(kid) != key for kid, key in before.items()):
                self.key_epoch += 1
            callbacks = tuple(self._callbacks)
        for callback in callbacks:
            callback(snapshot)
