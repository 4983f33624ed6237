"""The first operator, and one in its place: made by whoever holds the database's role and the KEK; by no rpc."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from casemate.clock import Clock
from casemate.errors import AlreadyExists
from services.auth.administration import revocations_of_client
from services.auth.records import HOUSE_TENANT, Client, OperatorChange, Tenant
from services.auth.store.authority import AuthorityStore
from services.auth.validation import FieldChecks

OPERATOR_AUDIENCES = ("auth", "datasets", "inference")
OPERATOR_SCOPES = ("admin", "log.read", "reflection")
"""Administration, and looking; an operator has no scope to read or write anybody's data."""
_MAX_REASON: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPlace:
    """Who is to be an operator: its identifier, its certificate's name, and where that lies."""

    client_id: str
    spiffe_id: str
    trust_domain: str


async def bootstrap_operator(store: AuthorityStore, place: OperatorPlace, *, clock: Clock) -> bool:
    """Adds the house tenant and its first operator; tells whether it did.

    Again with the same names it changes nothing, also when another took its place since: what starts
    a deployment asks for it each time.

    Raises:
        InvalidRequest: the identifier, or a SPIFFE ID outside of the house tenant's path.
        AlreadyExists: this database had another first operator.
    """
    _checked(place).raise_if_any()
    now = clock.now()
    made = OperatorChange(client_id=place.client_id, replaces="", reason="the first operator", at=now)
    try:
        await store.bootstrap(Tenant(name=HOUSE_TENANT, created_at=now), _operator(place, now), made)
    except AlreadyExists:
        known = await store.client(place.client_id)
        if known is None or (known.tenant, known.spiffe_id) != (HOUSE_TENANT, place.spiffe_id):
            raise
        return False
    return True


async def replace_operator(store: AuthorityStore, place: OperatorPlace, *, reason: str, clock: Clock) -> str:
    """Breaks the glass: another operator in the place of the one made last, which is disabled and revoked.

    For when its key is stolen or lost and nobody else administers. Returns the former's identifier.

    Raises:
        InvalidRequest: the identifier, the SPIFFE ID, or no reason.
        NotFound: there never was a first one.
        AlreadyExists: the identifier or the SPIFFE ID is taken, be it by the former.
    """
    checks = _checked(place)
    told = 0 < len(reason.strip()) <= _MAX_REASON and reason.isprintable()
    checks.that("reason", f"must be 1 to {_MAX_REASON} printable characters: the log is told of it", holds=told)
    checks.raise_if_any()
    now = clock.now()
    return await store.replace_operator(
        _operator(place, now),
        reason=reason.strip(),
        revocations=lambda former: revocations_of_client(former, now=now),
    )


def _checked(place: OperatorPlace) -> FieldChecks:
    checks = FieldChecks()
    checks.identifier("client_id", place.client_id)
    checks.named_inside("client_id", place.client_id, tenant=HOUSE_TENANT, required=False)
    checks.spiffe_id_within("spiffe_id", place.spiffe_id, trust_domain=place.trust_domain, tenant=HOUSE_TENANT)
    return checks


def _operator(place: OperatorPlace, now: datetime) -> Client:
    return Client(
        client_id=place.client_id,
        tenant=HOUSE_TENANT,
        spiffe_id=place.spiffe_id,
        audiences=OPERATOR_AUDIENCES,
        scopes=OPERATOR_SCOPES,
        enabled=True,
        created_at=now,
    )
