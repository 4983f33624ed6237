"""Verified tokens, kept so that the next call need not verify again.

Residency slides, trust does not: using an entry keeps it in memory and never
makes it trusted longer. Claims are kept, decisions are not: scope, binding,
revocation and grant are judged on every call.

If this fails: a token is accepted up to a minute after its key was removed; it
still is not accepted after `exp`, after a revocation, or from another certificate.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from casemate.errors import Reason, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from casemate.gate.core.verifier import VerifiedToken

MAX_TRUST_S: Final = 60.0
"""Seconds of the monotonic clock after which a hit verifies again, however often it was used."""
MAX_IDLE_S: Final = 120.0
"""Seconds without use after which an entry may leave memory."""


_SPARED_AT_MOST: Final = 64
"""Entries in use that are passed over when room is made; bounds what one new token costs."""


class CacheObserver(Protocol):
    """Counts what the cache does."""

    def __call__(self, outcome: str) -> None:
        """Takes one of `hit`, `miss`, `joined`, `failed`."""
        ...


@dataclass(slots=True)
class _Entry:
    token: VerifiedToken
    verified_at: float
    key_epoch: int
    last_used: float
    used: bool = False


@dataclass(slots=True)
class _Flight:
    """One verification under way, and those who wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    entry: _Entry | None = None
    # What was wrong, and not the exception: that knows the frame which knows this flight, and a flood of refused
    # tokens would leave rings for the garbage collector to find.
    refusal: tuple[str, Reason] | None = None


class TokenCache:
    """Bounded; safe in threads; of many first uses of one token one verifies and the others wait."""

    def __init__(
        self, *, max_entries: int = 10_000, max_per_client: int = 64, observe: CacheObserver | None = None
    ) -> None:
        self._max_entries = max_entries
        self._max_per_client = max_per_client
        self._observe: CacheObserver = observe if observe is not None else _ignore
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._by_client: dict[str, OrderedDict[bytes, None]] = {}
        self._flights: dict[bytes, _Flight] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def trusted(self, key: bytes, *, now: datetime, monotonic: float, key_epoch: int) -> VerifiedToken | None:
        """The verified token of this `token_key`, if memory has it and may be trusted; else as `verified`.

        Without the lock, which costs a call more than the look: what is read of an entry never changes, and its
        place in the order is settled when room is needed.
        """
        entry = self._entries.get(key)
        if (
            entry is None
            or entry.key_epoch != key_epoch
            or not 0 <= monotonic - entry.verified_at < MAX_TRUST_S
            or not entry.token.valid_from <= now < entry.token.expires_at
        ):
            return None
        entry.last_used = monotonic
        entry.used = True
        self._observe("hit")
        return entry.token

    def verified(
        self,
        text: str,
        *,
        now: datetime,
        monotonic: float,
        key_epoch: int,
        verify: Callable[[], VerifiedToken],
    ) -> VerifiedToken:
        """The verified token of this text, from memory where memory may be trusted.

        Args:
            text: the whole token; only its SHA-256 is kept.
            now: wall clock, for `exp`.
            monotonic: seconds of the clock that never goes back, for the age of the verification.
            key_epoch: present number of the key set; an entry of another one is verified again.
            verify: verifies the text; called at most once at a time for one text.

        Raises:
            Unauthenticated: expired, or what `verify` raised. Failures are never kept.
        """
        key = token_key(text)
        known = self.trusted(key, now=now, monotonic=monotonic, key_epoch=key_epoch)
        if known is not None:
            return known
        return self.resolve(key, now=now, monotonic=monotonic, key_epoch=key_epoch, verify=verify)

    def resolve(
        self,
        key: bytes,
        *,
        now: datetime,
        monotonic: float,
        key_epoch: int,
        verify: Callable[[], VerifiedToken],
    ) -> VerifiedToken:
        """What `verified` does for a token that is not `trusted`: one at a time finds out.

        Raises:
            Unauthenticated: as `verified`.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                if now < entry.token.valid_from:
                    raise Unauthenticated("token is not valid yet")  # the wall clock was set back
                if now >= entry.token.expires_at:
                    self._drop(key)
                    raise Unauthenticated("token has expired", reason=Reason.TOKEN_EXPIRED)
                if entry.key_epoch == key_epoch and 0 <= monotonic - entry.verified_at < MAX_TRUST_S:
                    entry.last_used = monotonic
                    entry.used = True
                    self._observe("hit")
                    return entry.token
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if leads:
            return self._lead(key, flight, verify, monotonic, key_epoch)
        token = self._join(flight, key_epoch)
        # The leader may have waited across a change of keys: then nobody's work is of use to us.
        return token if token is not None else verify()

    def _lead(
        self, key: bytes, flight: _Flight, verify: Callable[[], VerifiedToken], monotonic: float, key_epoch: int
    ) -> VerifiedToken:
        try:
            token = verify()
        except Unauthenticated as error:
            flight.refusal = (str(error), error.reason)
            self._observe("failed")
            with self._lock:
                self._drop(key)
            raise
        else:
            flight.entry = _Entry(token, verified_at=monotonic, key_epoch=key_epoch, last_used=monotonic)
            self._observe("miss")
            with self._lock:
                self._keep(key, flight.entry, monotonic)
            return token
        finally:
            with self._lock:
                self._flights.pop(key, None)
            flight.done.set()

    def _join(self, flight: _Flight, key_epoch: int) -> VerifiedToken | None:
        flight.done.wait()
        self._observe("joined")
        if flight.refusal is not None:
            detail, reason = flight.refusal
            raise Unauthenticated(detail, reason=reason)
        if flight.entry is None or flight.entry.key_epoch != key_epoch:
            return None
        return flight.entry.token

    def _keep(self, key: bytes, entry: _Entry, monotonic: float) -> None:
        self._drop(key)
        own = self._by_client.setdefault(entry.token.client_id, OrderedDict())
        if len(own) >= self._max_per_client:
            # A client's tokens push out only its own, so that nobody can empty the others' share.
            self._drop(next(iter(own)))
            own = self._by_client.setdefault(entry.token.client_id, OrderedDict())
        self._make_room(monotonic)
        self._entries[key] = entry
        self._by_client.setdefault(entry.token.client_id, own)[key] = None

    def _make_room(self, monotonic: float) -> None:
        """Drops the idle, and if that is not enough the first that was not used since it was last looked at here."""
        spared = 0
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            idle = monotonic - entry.last_used >= MAX_IDLE_S
            if entry.used and not idle and spared < _SPARED_AT_MOST:
                entry.used = False
                self._entries.move_to_end(key)
                spared += 1
                continue
            if not idle and len(self._entries) < self._max_entries:
                break
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        own = self._by_client[entry.token.client_id]
        del own[key]
        if not own:
            del self._by_client[entry.token.client_id]


def token_key(text: str) -> bytes:
    """A digest and not the text: a dump of this memory then holds no bearer of anything."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _ignore(outcome: str) -> None:
    """Counts nothing."""
