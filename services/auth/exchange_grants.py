"""What operators let clients do for subjects, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

from casemate.clock import Clock
from services.auth.credential_records import ExchangeGrant
from services.auth.records import Client, Family
from services.auth.store.credentials import CredentialStore


class ExchangeGrants:
    """The live exchange grants of clients."""

    def __init__(self, *, store: CredentialStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def find(self, client: Client, *, source: str, audience: str) -> list[ExchangeGrant]:
        """Those of a client on the subjects of a source, at an audience. One read."""
        now = self._clock.now()
        return [
            grant
            for grant in await self._store.exchange_grants_of(client.client_id)
            if (grant.source, grant.audience) == (source, audience)
            and (grant.expires_at is None or now < grant.expires_at)
        ]

    async def still_allowed(self, client: Client, family: Family) -> frozenset[str]:
        """The scopes that a family's tokens may carry now: what an operator took back is gone. One read."""
        source, _, _ = family.subject.partition(":")
        return granted(
            grant for grant in await self.find(client, source=source, audience=family.audience) if grant.refresh
        )


def granted(grants: Iterable[ExchangeGrant]) -> frozenset[str]:
    """All scopes of some grants."""
    return frozenset().union(*(grant.scopes for grant in grants))
