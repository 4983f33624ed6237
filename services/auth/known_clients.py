"""Clients whose rows were verified lately, in memory, so that a token costs no read.

A row is taken from memory only while all of this holds: it was read and verified
less than 60 s ago; no change of it was told since; and the primary was read for news
less than 5 s ago. Otherwise it is read again. A change that another replica made is
told here with the trust feed, within milliseconds, by the heartbeat at the latest;
what is signed in between for a client that was disabled is revoked all the same,
because that revocation reaches a minute ahead. Who is not in memory is read, so a new
client is known at once, and strangers fill nothing.

If this fails: a client that was disabled gets tokens for as long; they are refused
everywhere by their revocation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from casemate.clock import Clock
from services.auth.records import Client

VERIFIED_FOR: Final = timedelta(seconds=60)
"""How long a row counts as verified: what SQL did past the application shows by then."""
NEWS_WITHIN: Final = timedelta(seconds=5)
"""How old the last read of the primary may be."""
_MOST: Final = 10_000


class KnownClients:
    """Reads clients by their certificate's name; lives in one event loop.

    Args:
        read: one read of the database, verified.
        news_age: how long ago the primary was read for news.
        clock: for the age of rows.
    """

    def __init__(
        self,
        *,
        read: Callable[[str], Awaitable[Client | None]],
        news_age: Callable[[], timedelta],
        clock: Clock,
    ) -> None:
        self._read = read
        self._news_age = news_age
        self._clock = clock
        self._known: OrderedDict[str, tuple[Client, float]] = OrderedDict()
        self._turn = 0

    async def by_certificate(self, spiffe_id: str) -> Client | None:
        """The client whose certificate alone proves it; no read if it is known.

        Raises:
            Unavailable: it has to be read, and cannot be.
        """
        found = self._known.get(spiffe_id)
        if found is not None:
            client, verified_at = found
            young = self._clock.monotonic() - verified_at < VERIFIED_FOR.total_seconds()
            if young and self._news_age() < NEWS_WITHIN:
                return client
        turn, asked_at = self._turn, self._clock.monotonic()
        read = await self._read(spiffe_id)
        # A change that was told while we read may be missing in what we read, so that is not kept. Nor is who is
        # disabled: the refusal has to cost what that of a stranger costs.
        if read is not None and read.enabled and turn == self._turn:
            self._keep(spiffe_id, read, asked_at)
        return read

    def forget(self, client_ids: frozenset[str] | None) -> None:
        """Forgets clients that changed; None: all of them."""
        self._turn += 1
        if client_ids is None:
            self._known.clear()
            return
        for spiffe_id in [name for name, (client, _) in self._known.items() if client.client_id in client_ids]:
            del self._known[spiffe_id]

    def _keep(self, spiffe_id: str, client: Client, verified_at: float) -> None:
        self._known.pop(spiffe_id, None)
        self._known[spiffe_id] = (client, verified_at)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
