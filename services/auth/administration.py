"""What operators change, and how far each of them reaches.

An administrator acts inside the tenant of its token; one of the house tenant acts
on every tenant. What lies outside its reach is not found, like what does not exist.

If this fails: an administrator of one tenant changes another's trust. Each change
is in the audit, denied ones too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from casemate.clock import Clock
from casemate.errors import FieldViolation, InvalidRequest, NotFound, PermissionDenied, Reason
from casemate.gate.core.records import Grant, Revocation, RevocationKind
from casemate.signing.keys import PublicKey
from casemate.signing.signers import ROLES, Signer
from casemate.signing.statements import verify_registration
from services.auth.credential_records import OUR_OWN
from services.auth.records import HOUSE_TENANT, Client, Tenant, TokenKey
from services.auth.scopes import OURS, SCOPES_BY_AUDIENCE, Audiences
from services.auth.store.authority import AuthorityStore
from services.auth.subjects import MAX_SUBJECT_TOKEN_LIFETIME
from services.auth.token_issuer import MAX_LIFETIME
from services.auth.validation import VERBS, FieldChecks, is_identifier

DEFAULT_SIGNER_LIFETIME: Final = timedelta(days=365)
FROM_THE_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Before any signature: a signer revoked from here on never counted."""

_ISSUING_TAKES_AT_MOST: Final = timedelta(minutes=1)
"""Longer than any call, and than clocks of replicas differ."""
_TOKENS_ARE_DEAD_AFTER: Final = MAX_LIFETIME + _ISSUING_TAKES_AT_MOST
"""When a revocation of tokens may be forgotten."""
_CERTIFICATES_ARE_DEAD_AFTER: Final = timedelta(days=398)
"""Longer than any leaf that a CA should issue; ours live a day."""
_MAX_VALUE_LENGTH: Final = 2048
_RESERVED: Final = frozenset({*SCOPES_BY_AUDIENCE, OUR_OWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerRequest:
    """A key to be registered, and the proof that its private half is held."""

    tenant: str
    role: str
    public_key_der: bytes
    proof: bytes
    valid_until: datetime | None


class Administration:
    """The operators' changes, each checked, each one transaction.

    Args:
        store: where they go.
        new_token_key: makes the successor of a revoked token key.
        token_keys: lists the token keys.
        trust_domain: in which SPIFFE IDs lie.
        clock: says when now is.
        forget: told which clients changed, so that this process at least knows it when the call returns.
    """

    def __init__(
        self,
        *,
        store: AuthorityStore,
        new_token_key: Callable[[], Awaitable[TokenKey]],
        token_keys: Callable[[], Awaitable[list[tuple[TokenKey, datetime | None]]]],
        trust_domain: str,
        clock: Clock,
        audiences: Audiences = OURS,
        forget: Callable[[frozenset[str]], None] = lambda _client_ids: None,
    ) -> None:
        self._forget = forget
        self._store = store
        self._audiences = audiences
        self._new_token_key = new_token_key
        self._token_keys = token_keys
        self._trust_domain = trust_domain
        self._clock = clock

    async def create_tenant(self, admin: str, tenant: str) -> None:
        """Creates a tenant; the house tenant's operators alone may.

        Raises:
            InvalidRequest: the name; AlreadyExists: it is taken; PermissionDenied: not an operator.
        """
        _require_house(admin)
        checks = FieldChecks()
        checks.tenant("tenant", tenant)
        checks.raise_if_any()
        await self._store.add_tenant(Tenant(name=tenant, created_at=self._clock.now()))

    async def create_client(self, admin: str, client: Client) -> None:
        """Registers a client inside its tenant's SPIFFE path; `enabled` and `created_at` are set here.

        Raises:
            InvalidRequest: names the fields; NotFound: the tenant; AlreadyExists: identifier or SPIFFE ID,
                which one if it is a client's that the administrator may know of.
        """
        checks = FieldChecks(known=self._audiences)
        checks.identifier("client.client_id", client.client_id)
        checks.tenant("client.tenant", client.tenant)
        confined = reach_of(admin) is not None
        checks.named_inside("client.client_id", client.client_id, tenant=client.tenant, required=confined)
        checks.spiffe_id_within(
            "client.spiffe_id", client.spiffe_id, trust_domain=self._trust_domain, tenant=client.tenant
        )
        reserved = client.client_id in _RESERVED or client.client_id in self._audiences
        checks.that("client.client_id", "is a service's name", holds=not reserved)
        speakers = [name for name in client.audiences if name not in self._audiences and is_identifier(name)]
        known = [name for name in speakers if await self._is_client_of(name, client.tenant)]
        checks.audiences("client.audiences", client.audiences, clients=known)
        checks.scopes("client.scopes", client.scopes)
        checks.raise_if_any()
        require_reach(admin, client.tenant)
        await self._store.add_client(
            replace(
                client,
                audiences=tuple(sorted(set(client.audiences))),
                scopes=tuple(sorted(set(client.scopes))),
                enabled=True,
                created_at=self._clock.now(),
            ),
            within=reach_of(admin),
        )

    async def _is_client_of(self, name: str, tenant: str) -> bool:
        """Whether an audience is a client of the tenant, which may then speak for the new one."""
        found = await self._store.client(name)
        return found is not None and found.tenant == tenant

    async def disable_client(self, admin: str, client_id: str) -> None:
        """Disables a client; what it holds is refused within a second. Raises NotFound."""
        checks = FieldChecks()
        checks.identifier("client_id", client_id)
        checks.raise_if_any()
        now = self._clock.now()
        revocations = revocations_of_client(client_id, now=now)
        await self._store.disable_client(client_id, within=reach_of(admin), revocations=revocations, now=now)
        self._forget(frozenset({client_id}))

    async def enable_client(self, admin: str, client_id: str) -> datetime | None:
        """Lets a client have tokens again; what it held stays dead. Raises NotFound.

        Returns:
            Up to when a token that is issued to it is refused all the same; None if it is not.
        """
        checks = FieldChecks()
        checks.identifier("client_id", client_id)
        checks.raise_if_any()
        until = await self._store.enable_client(client_id, within=reach_of(admin), now=self._clock.now())
        self._forget(frozenset({client_id}))
        return until

    async def create_grant(self, admin: str, grant: Grant) -> str:
        """Creates a grant under a new identifier, which is returned.

        Raises:
            InvalidRequest: names the fields; NotFound: the tenant.
        """
        checks = FieldChecks(known=self._audiences)
        checks.tenant("grant.tenant", grant.tenant)
        checks.caller_pattern("grant.caller", grant.caller, tenant=grant.tenant)
        checks.that("grant.verb", "must be push, read, publish, infer, describe or '*'", holds=grant.verb in VERBS)
        checks.resource_pattern("grant.resource", grant.resource)
        ahead = grant.expires_at is None or grant.expires_at > self._clock.now()
        checks.that("grant.expires_at", "must lie ahead", holds=ahead)
        checks.raise_if_any()
        require_reach(admin, grant.tenant)
        created = replace(grant, id=new_identifier("grant"))
        await self._store.add_grant(created)
        return created.id

    async def delete_grant(self, admin: str, grant_id: str) -> None:
        """Removes a grant. Raises NotFound."""
        checks = FieldChecks()
        checks.identifier("id", grant_id)
        checks.raise_if_any()
        await self._store.delete_grant(grant_id, within=reach_of(admin))

    async def register_signer(self, admin: str, request: SignerRequest) -> str:
        """Registers a sound key whose holder asked for this tenant and role; returns its key id.

        Raises:
            InvalidRequest: names the fields, or WEAK_KEY, or MANIFEST_INVALID for the proof's form;
                SignatureInvalid: the proof; NotFound: the tenant; AlreadyExists: the key.
        """
        now = self._clock.now()
        valid_until = request.valid_until or now + DEFAULT_SIGNER_LIFETIME
        checks = FieldChecks()
        checks.tenant("tenant", request.tenant)
        checks.that("role", "must be supplier, publisher or operator", holds=request.role in ROLES)
        checks.that("valid_until", "must lie ahead", holds=valid_until > now)
        checks.raise_if_any()
        require_reach(admin, request.tenant)
        role = next(role for role in ROLES if role == request.role)
        public_key = PublicKey.admit(request.public_key_der)
        proven = verify_registration(
            request.proof,
            tenant=request.tenant,
            role=role,
            public_key=public_key,
            audience=f"auth.{self._trust_domain}",
        )
        signer = Signer(
            key_id=proven.public_key.key_id,
            tenant=proven.tenant,
            role=proven.role,
            public_key=proven.public_key,
            valid_from=now,
            valid_until=valid_until,
        )
        await self._store.add_signer(signer)
        return signer.key_id

    async def revoke_signer(self, admin: str, key_id: str, *, since: datetime | None) -> None:
        """Has nothing trusted that a signer signed since a moment; unset, nothing at all. Raises NotFound."""
        checks = FieldChecks()
        checks.identifier("key_id", key_id)
        checks.raise_if_any()
        await self._store.revoke_signer(key_id, since=since or FROM_THE_BEGINNING, within=reach_of(admin))

    async def revoke(self, admin: str, kind: RevocationKind, value: str) -> str:
        """Revokes tokens or certificates; returns the revocation's identifier.

        A tenant's administrator revokes its own clients, subjects and SPIFFE IDs; whose a token,
        session, key or certificate is, its name does not say, so those are for the house tenant.

        Raises:
            InvalidRequest: the value; NotFound: outside of reach; PermissionDenied: for operators alone.
        """
        checks = FieldChecks()
        well_formed = 0 < len(value) <= _MAX_VALUE_LENGTH and value.isascii() and value.isprintable()
        checks.that("value", "must be 1 to 2048 printable ASCII characters", holds=well_formed)
        checks.raise_if_any()
        if kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT):
            await self._require_subject_reach(admin, kind, value)
        elif kind is RevocationKind.SPIFFE_ID:
            self._require_spiffe_reach(admin, value)
        else:
            _require_house(admin)
        revocation = self._revocation(kind, value)
        if kind is RevocationKind.KEY:
            successor = await self._new_token_key()
            return await self._store.replace_token_key(
                value, successor=successor, revocation=revocation, now=self._clock.now()
            )
        return await self._store.revoke(revocation, now=self._clock.now())

    async def list_token_keys(self, admin: str) -> list[tuple[TokenKey, datetime | None]]:
        """The keys that sign tokens, and when each changes its state next. Raises PermissionDenied: not an operator."""
        _require_house(admin)
        return await self._token_keys()

    async def revoke_own_token(self, token_id: str) -> None:
        """Revokes one token whose identifier was proven to be its client's own."""
        await self._store.revoke(self._revocation(RevocationKind.TOKEN, token_id), now=self._clock.now())

    async def _require_subject_reach(self, admin: str, kind: RevocationKind, value: str) -> None:
        """A subject is a client's identifier, or `<issuer>:<sub>` of an external issuer."""
        issuer, external, _ = value.partition(":")
        if kind is RevocationKind.SUBJECT and external:
            tenant = await self._store.tenant_of_issuer(issuer)
            if tenant is None and admin == HOUSE_TENANT and await self._store.is_issuer_revoked(issuer):
                return  # it was removed, and is no tenant's any more
        else:
            client = await self._store.client(value)
            tenant = None if client is None else client.tenant
        if tenant is None or reach_of(admin) not in (None, tenant):
            raise NotFound(f"{kind.value} to revoke")

    def _require_spiffe_reach(self, admin: str, spiffe_id: str) -> None:
        if not spiffe_id.startswith(f"spiffe://{self._trust_domain}/"):
            violation = FieldViolation("value", "must be a SPIFFE ID of this trust domain")
            raise InvalidRequest("foreign SPIFFE ID", violations=(violation,))
        if admin != HOUSE_TENANT and not spiffe_id.startswith(f"spiffe://{self._trust_domain}/t/{admin}/"):
            raise NotFound("SPIFFE ID to revoke")

    def _revocation(self, kind: RevocationKind, value: str) -> Revocation:
        return _revocation(kind, value, now=self._clock.now())


def revocations_of_client(client_id: str, *, now: datetime) -> list[Revocation]:
    """What ends all that a client holds, and what others hold that speak for it.

    Reaches ahead: a token may be signed at this very moment, after its client was read as enabled.
    """
    kinds = (RevocationKind.CLIENT, RevocationKind.SUBJECT)
    reach = now + _ISSUING_TAKES_AT_MOST
    return [replace(_revocation(kind, client_id, now=now), not_before=reach) for kind in kinds]


def revocation_of_issuer(name: str, *, now: datetime) -> Revocation:
    """What ends all that rests on what an external issuer said up to now, of whomever.

    Reaches ahead as that of a client does: registered again, the issuer is heard with what it says a minute later.
    """
    revocation = _revocation(RevocationKind.SUBJECT, f"{name}:", now=now)
    return replace(revocation, not_before=now + _ISSUING_TAKES_AT_MOST)


def _revocation(kind: RevocationKind, value: str, *, now: datetime) -> Revocation:
    expires_at: datetime | None = now + _TOKENS_ARE_DEAD_AFTER
    if kind is RevocationKind.CERTIFICATE:
        expires_at = now + _CERTIFICATES_ARE_DEAD_AFTER
    elif kind is RevocationKind.SPIFFE_ID:
        # A name, not a certificate: whoever is issued a new one under it would be let in again.
        expires_at = None
    elif kind is RevocationKind.SUBJECT:
        # What an external issuer said of it before must not begin a session after.
        expires_at = now + MAX_SUBJECT_TOKEN_LIFETIME + _ISSUING_TAKES_AT_MOST
    before = now if kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT) else None
    return Revocation(id=new_identifier("revocation"), kind=kind, value=value, not_before=before, expires_at=expires_at)


def new_identifier(kind: str) -> str:
    """A new identifier that says what it is of."""
    return f"{kind}-{secrets.token_hex(12)}"


def reach_of(admin: str) -> str | None:
    """The one tenant that an administrator may act on; None: every tenant."""
    return None if admin == HOUSE_TENANT else admin


def require_reach(admin: str, tenant: str) -> None:
    """Raises NotFound unless the administrator may act on the tenant."""
    if reach_of(admin) not in (None, tenant):
        raise NotFound("tenant outside of reach")


def _require_house(admin: str) -> None:
    if admin != HOUSE_TENANT:
        raise PermissionDenied("for operators of the house tenant", reason=Reason.CALLER_NOT_ALLOWED)
