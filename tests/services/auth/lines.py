"""Refresh families over a real database, with a clock in the test's hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from casemate.gate.core.records import VerificationKey
from casemate.gate.core.revocations import RevocationIndex
from casemate.gate.core.verifier import TokenVerifier, VerifiedToken
from casemate.secret import Secret
from services.auth import token_keys
from services.auth.families import Families, Refreshed
from services.auth.records import Client, Family, Tenant
from services.auth.refresh_tokens import RefreshTokens
from services.auth.store.ended_families import EndedFamilies
from services.auth.store.families import FamilyStore
from services.auth.token_issuer import Entitlement, TokenIdentifiers, TokenIssuer
from tests.services.auth.world import Shelf, spiffe_id

START = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
ISSUER = "https://auth.casemate.internal"
THUMBPRINT = "A" * 43
OWNER = spiffe_id("acme", "gateway")
THIEF = spiffe_id("acme", "mallory")
GATEWAY = Client(
    client_id="acme-gateway",
    tenant="acme",
    spiffe_id=OWNER,
    audiences=("inference",),
    scopes=("models.infer", "reflection"),
    enabled=True,
    created_at=START,
)


@dataclass
class HandClock:
    """Stands still unless moved."""

    moment: datetime = START
    seconds: float = 1000.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.seconds

    def pass_by(self, span: timedelta) -> None:
        self.moment += span
        self.seconds += span.total_seconds()


@dataclass
class Line:
    """One family and everything that judges it."""

    shelf: Shelf
    clock: HandClock
    families: Families
    key: VerificationKey
    family: Family
    first: str
    outcomes: list[str] = field(default_factory=list)

    async def refresh(self, text: str, *, by: str = OWNER, **change: Any) -> Refreshed:
        arguments: dict[str, Any] = {"thumbprint": THUMBPRINT, "not_after": self.clock.now() + timedelta(days=1)}
        return await self.families.refresh(text, **{"client": GATEWAY, **arguments, **change}, spiffe_id=by)

    async def row(self) -> Family:
        async with self.shelf.pool.acquire() as connection:
            found = await self.shelf.tables.families.get(connection, self.family.id)
        assert found is not None
        return found

    def verified(self, text: Secret[str]) -> VerifiedToken:
        verifier = TokenVerifier(issuer=ISSUER, audience="inference")
        return verifier.verify(text.reveal(), keys={self.key.kid: self.key}, now=self.clock.now())

    async def check_access(self, text: Secret[str]) -> VerifiedToken:
        """The token as a service judges it that has heard everything up to now."""
        token = self.verified(text)
        async with self.shelf.pool.acquire() as connection:
            revocations = RevocationIndex.of(await self.shelf.tables.revocations.all(connection))
        revocations.check_token(token, self.clock.now())
        return token


async def _all_of_it(_client: Client, family: Family) -> frozenset[str]:
    return frozenset(family.scopes)


async def enlist(shelf: Shelf) -> None:
    await shelf.store.add_tenant(Tenant(name="acme", created_at=START))
    await shelf.store.add_client(GATEWAY)


async def begin_line(shelf: Shelf, clock: HandClock | None = None, *, ended: EndedFamilies | None = None) -> Line:
    """A new family; its client must be there."""
    clock = clock or HandClock()
    record = await token_keys.generate(shelf.kek, now=START)
    signing = await token_keys.open_key(shelf.kek, record)
    issuer = TokenIssuer(
        issuer=ISSUER, signing_key=lambda: signing, identifiers=TokenIdentifiers(key=shelf.key), clock=clock
    )
    outcomes: list[str] = []
    families = Families(
        store=FamilyStore(pool=shelf.pool, tables=shelf.tables, ended=ended),
        tokens=RefreshTokens(key=shelf.key),
        issuer=issuer,
        clock=clock,
        allowed=_all_of_it,
        observe=outcomes.append,
    )
    entitlement = Entitlement(
        tenant="acme",
        client_id=GATEWAY.client_id,
        subject="idp:alice",
        audience="inference",
        scopes=("models.infer", "reflection"),
        actors=(GATEWAY.client_id,),
    )
    family, first = await families.begin(entitlement, spiffe_id=OWNER)
    key = VerificationKey.load(record.public_key)
    return Line(shelf, clock, families, key, family, first.reveal(), outcomes)
