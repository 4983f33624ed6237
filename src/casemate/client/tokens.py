"""Tokens of one caller: fetched once, shared by all threads, renewed before they end.

If this fails: calls are made with a token that is no longer accepted, and
answered UNAUTHENTICATED. A token alone opens nothing: it is bound to the certificate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from casemate.clock import Clock
from casemate.secret import Secret

RENEW_AT = 0.8
"""Part of a token's life after which a new one is fetched."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token and the span in which it is used."""

    text: Secret[str]
    token_id: str
    fetched_at: datetime
    expires_at: datetime

    def due(self, now: datetime) -> bool:
        """Whether a new one should be fetched."""
        return now >= self.fetched_at + (self.expires_at - self.fetched_at) * RENEW_AT


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What a token was asked for: another certificate is another token (RFC 8705 section 6.3)."""

    audience: str
    scopes: tuple[str, ...]
    thumbprint: str


class TokenSource:
    """Gives the token for a key; concurrent callers wait for one fetch.

    Args:
        fetch: asks the token service.
        clock: judges when a token is due.
    """

    def __init__(self, *, fetch: Callable[[TokenKey], AccessToken], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[TokenKey, AccessToken] = {}
        self._fetching: dict[TokenKey, threading.Lock] = {}

    def token(self, key: TokenKey) -> AccessToken:
        """The token for `key`, fetched if there is none or it is due.

        Raises:
            CasemateError: what the token service answered, where there is no token left to use.
        """
        now = self._clock.now()
        found = self._tokens.get(key)
        if found is not None and not found.due(now):
            return found
        with self._lock:
            turn = self._fetching.setdefault(key, threading.Lock())
        with turn:
            found = self._tokens.get(key)
            if found is None or found.due(self._clock.now()):
                found = self._fetch(key)
                with self._lock:
                    self._forget_older(key)
                    self._tokens[key] = found
        return found

    def present(self, key: TokenKey) -> AccessToken | None:
        """The token for `key` if there is one that is not due; never waits."""
        found = self._tokens.get(key)
        return found if found is not None and not found.due(self._clock.now()) else None

    def forget(self) -> None:
        """Drops every token: the next call fetches."""
        with self._lock:
            self._tokens.clear()

    def _forget_older(self, key: TokenKey) -> None:
        """Drops the tokens of earlier certificates, so that a long life does not collect them."""
        newest = {key.thumbprint, *[other.thumbprint for other in self._tokens][-1:]}
        for other in [other for other in self._tokens if other.thumbprint not in newest]:
            del self._tokens[other]
            self._fetching.pop(other, None)
