"""The first operator, made once per database by whoever holds its role and the KEK; by no rpc."""

from __future__ import annotations

from casemate.clock import Clock
from casemate.errors import AlreadyExists
from services.auth.records import HOUSE_TENANT, Client, Tenant
from services.auth.store.authority import AuthorityStore
from services.auth.validation import FieldChecks

OPERATOR_AUDIENCES = ("auth", "datasets", "inference")
OPERATOR_SCOPES = ("admin", "log.read", "reflection")
"""Administration, and looking; an operator has no scope to read or write anybody's data."""


async def bootstrap_operator(
    store: AuthorityStore, *, client_id: str, spiffe_id: str, trust_domain: str, clock: Clock
) -> None:
    """Adds the house tenant and its first operator. Again with the same names it changes nothing.

    Raises:
        InvalidRequest: the identifier, or a SPIFFE ID outside of the house tenant's path.
        AlreadyExists: this database had another first operator, or this one was disabled.
    """
    checks = FieldChecks()
    checks.identifier("client_id", client_id)
    checks.spiffe_id_within("spiffe_id", spiffe_id, trust_domain=trust_domain, tenant=HOUSE_TENANT)
    checks.raise_if_any()
    now = clock.now()
    operator = Client(
        client_id=client_id,
        tenant=HOUSE_TENANT,
        spiffe_id=spiffe_id,
        audiences=OPERATOR_AUDIENCES,
        scopes=OPERATOR_SCOPES,
        enabled=True,
        created_at=now,
    )
    try:
        await store.bootstrap(Tenant(name=HOUSE_TENANT, created_at=now), operator)
    except AlreadyExists:
        known = await store.client(client_id)
        if known is None or not known.enabled or (known.tenant, known.spiffe_id) != (HOUSE_TENANT, spiffe_id):
            raise
