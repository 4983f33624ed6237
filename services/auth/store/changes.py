"""Changes of the authority: the rows, and the number under which the feed tells of them, in one transaction.

Changes run one after another, under an advisory lock that is held until commit.
So numbers are given in the order of commits and none is missing: a reader that
saw number N has seen everything before it. A change that is rolled back gives
its number back.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from casemate.storage.pool import Connection

CHANNEL: Final = "casemate_trust"
"""What is notified at each commit. It only wakes: nothing is read from it."""

_LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"casemate.trust-changes").digest()[:8], signed=True)

KEPT_EVENTS: Final = 10_000
"""A watcher that is further behind gets a snapshot."""


class EventKind(StrEnum):
    """Which kind of record an event names."""

    TOKEN_KEY = "token_key"  # noqa: S105  # a kind, not a secret
    REVOCATION = "revocation"
    GRANT = "grant"
    SIGNER = "signer"
    RELEASE = "release"
    TENANT = "tenant"
    CLIENT = "client"
    CLIENT_SECRET = "client_secret"  # noqa: S105  # as above
    CLIENT_KEY = "client_key"
    ISSUER = "issuer"
    EXCHANGE_GRANT = "exchange_grant"
    OPERATOR = "operator"


KEY_PARTS: Final = {kind.value: 2 if kind in (EventKind.RELEASE, EventKind.CLIENT_KEY) else 1 for kind in EventKind}
"""How many parts the key of a record has, by kind."""

OWN: Final = frozenset(EventKind) - {
    EventKind.TOKEN_KEY,
    EventKind.REVOCATION,
    EventKind.GRANT,
    EventKind.SIGNER,
    EventKind.RELEASE,
}
"""Kinds that only this service acts on: they have a number, and the log is told of them, but no watcher is."""


class Change:
    """One transaction that changes the authority; `begin_change` makes it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._told = 0

    async def tell(self, kind: EventKind, *key: str) -> None:
        """Gives the change of the record with this key its number, under which the feed and the log tell of it."""
        sequence = await self.connection.fetchval(
            "UPDATE trust_head SET sequence = sequence + 1 WHERE singleton RETURNING sequence"
        )
        await self.connection.execute(
            "INSERT INTO trust_event (sequence, kind, record_key) VALUES ($1, $2, $3)", sequence, kind.value, list(key)
        )
        self._told = sequence

    async def finish(self) -> None:
        """Forgets old events and wakes the readers, at commit."""
        if not self._told:
            return
        await self.connection.execute("DELETE FROM trust_event WHERE sequence <= $1", self._told - KEPT_EVENTS)
        # Delivered by PostgreSQL at commit, and not at all if there is none.
        await self.connection.execute("SELECT pg_notify($1, '')", CHANNEL)


@asynccontextmanager
async def hold_changes(connection: Connection) -> AsyncIterator[None]:
    """A transaction in which no change of the authority commits; others that only hold changes go on beside it."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK_KEY)
        yield


@asynccontextmanager
async def begin_change(connection: Connection) -> AsyncIterator[Change]:
    """A transaction that holds the lock of all changes; commits unless the block raises."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
        change = Change(connection)
        yield change
        await change.finish()
