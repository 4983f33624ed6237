"""Slows whoever fails often: by its proven identity, never by the name that it claims.

So nobody locks another out by guessing in its name, and ten thousand bad attempts
from one certificate cost that certificate alone.

If this fails: one caller guesses as fast as the quota lets it; a secret has 256 bits.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from casemate.clock import Clock
from casemate.errors import Exhausted, Unauthenticated

FREE_FAILURES: Final = 10
"""That cost no time: a restart with a wrong setting should not."""
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 60.0
_FORGOTTEN_AFTER_S: Final = 600.0
_IDENTITIES: Final = 10_000


class Slowing:
    """Counts failures per identity; after ten, each doubles the wait, up to a minute."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def attempt(self, identity: str, *, shown: str = "") -> _Attempt:
        """One attempt of an identity to prove a client: a block, and `Unauthenticated` from it counts against it.

        What comes after the proof, such as an expired grant of somebody else, belongs outside of the block.
        A success forgives failures that all showed the same: a typing error that was mended. It does not
        forgive others, or guesses at one client between good calls of another would be free.

        Args:
            identity: the certificate's.
            shown: what kind of credential, of which client.

        Raises:
            Exhausted: it has to wait; says how long. Nothing was done.
        """
        failures = self._failures.get(identity)
        if failures is not None:
            now = self._clock.monotonic()
            if now - failures.last >= _FORGOTTEN_AFTER_S:
                del self._failures[identity]
            elif (wait := failures.last + _wait_s(failures.count) - now) > 0:
                detail = f"{identity} failed {failures.count} times"
                raise Exhausted(detail, retry_after=timedelta(seconds=wait))
        return _Attempt(self, identity, shown)

    def ended(self, identity: str, shown: str, *, proven: bool) -> None:
        """Notes how an attempt ended."""
        if not proven:
            self._failed(identity, shown)
            return
        failures = self._failures.get(identity)
        if failures is not None and failures.shown == shown:
            del self._failures[identity]

    def _failed(self, identity: str, shown: str) -> None:
        before = self._failures.get(identity)
        count = 1 if before is None else before.count + 1
        same = before is None or before.shown == shown
        self._failures[identity] = _Failures(count, self._clock.monotonic(), shown if same else None)
        self._failures.move_to_end(identity)
        if len(self._failures) > _IDENTITIES:
            self._failures.popitem(last=False)


class _Attempt:
    """The block of one attempt; by hand, as every token has one."""

    __slots__ = ("_identity", "_shown", "_slowing")

    def __init__(self, slowing: Slowing, identity: str, shown: str) -> None:
        self._slowing = slowing
        self._identity = identity
        self._shown = shown

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What failed otherwise, a database that is not there for one, proves and refutes nothing.
        if kind is None or issubclass(kind, Unauthenticated):
            self._slowing.ended(self._identity, self._shown, proven=kind is None)


@dataclass(frozen=True, slots=True)
class _Failures:
    """How many, when the last one was, and what all of them showed; None if not all the same."""

    count: int
    last: float
    shown: str | None


def _wait_s(failures: int) -> float:
    over = failures - FREE_FAILURES
    return 0.0 if over < 0 else min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(over, 32))
