"""What operators say of how clients prove themselves, and for whom they may speak.

Reach is as in `administration`: an administrator acts inside the tenant of its token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from casemate.clock import Clock
from casemate.errors import NotFound
from casemate.secret import Secret
from casemate.signing.keys import PublicKey
from services.auth.administration import new_identifier, reach_of, require_reach, revocation_of_issuer
from services.auth.client_secrets import SecretDigests, generate_secret
from services.auth.credential_records import OUR_OWN, ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
from services.auth.scopes import OURS, Audiences
from services.auth.store.credentials import CredentialStore
from services.auth.subjects import encode_key
from services.auth.validation import FieldChecks

_MAX_KEYS: Final = 16
_KID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_TEXT: Final = re.compile(r"[\x21-\x7e]{1,512}")


class Credentials:
    """The operators' changes to credentials, external issuers and exchange grants; each one transaction.

    Args:
        store: where they go.
        digests: of secrets.
        clock: says when now is.
    """

    def __init__(
        self, *, store: CredentialStore, digests: SecretDigests, clock: Clock, audiences: Audiences = OURS
    ) -> None:
        self._store = store
        self._audiences = audiences
        self._digests = digests
        self._clock = clock

    async def create_secret(self, admin: str, client_id: str) -> tuple[str, Secret[str]]:
        """A new secret and its identifier; it is kept nowhere.

        Raises:
            NotFound: no such client within reach, or it does not prove itself by secrets.
            AlreadyExists: two are alive.
        """
        _check_identifiers(client_id=client_id)
        secret = generate_secret()
        record = ClientSecret(
            id=f"secret-{secrets.token_hex(12)}",
            client_id=client_id,
            digest=self._digests.digest(client_id, secret),
            created_at=self._clock.now(),
        )
        await self._store.add_secret(record, within=reach_of(admin))
        return record.id, secret

    async def delete_secret(self, admin: str, client_id: str, secret_id: str) -> None:
        """Ends a secret. Raises NotFound."""
        _check_identifiers(client_id=client_id, id=secret_id)
        await self._store.delete_secret(client_id, secret_id, within=reach_of(admin))

    async def add_key(self, admin: str, client_id: str, public_key: bytes) -> str:
        """Adds a key whose assertions prove a client; returns its identifier.

        Raises:
            InvalidRequest: `WEAK_KEY`; NotFound: the client; AlreadyExists.
        """
        _check_identifiers(client_id=client_id)
        key = PublicKey.admit(public_key)
        record = ClientKey(client_id=client_id, key_id=key.key_id, public_key=key.der, created_at=self._clock.now())
        await self._store.add_key(record, within=reach_of(admin))
        return key.key_id

    async def remove_key(self, admin: str, client_id: str, key_id: str) -> None:
        """Ends a key. Raises NotFound."""
        _check_identifiers(client_id=client_id, key_id=key_id)
        await self._store.delete_key(client_id, key_id, within=reach_of(admin))

    async def register_issuer(
        self, admin: str, *, name: str, tenant: str, url: str, audience: str, keys: Sequence[tuple[str, bytes]]
    ) -> None:
        """Registers an external issuer by its pinned keys (`kid`, DER).

        Raises:
            InvalidRequest: names the fields, or `WEAK_KEY`; NotFound: the tenant; AlreadyExists.
        """
        checks = FieldChecks()
        checks.issuer("issuer.name", name)
        checks.named_inside("issuer.name", name, tenant=tenant, required=reach_of(admin) is not None)
        checks.that("issuer.name", "is taken by this service", holds=name != OUR_OWN)
        checks.tenant("issuer.tenant", tenant)
        for field, value in (("issuer.url", url), ("issuer.audience", audience)):
            checks.that(field, "must be 1 to 512 printable characters", holds=_TEXT.fullmatch(value) is not None)
        named = all(_KID.fullmatch(kid) for kid, _ in keys) and len({kid for kid, _ in keys}) == len(keys)
        checks.that("issuer.keys", "must be 1 to 16 with different kids", holds=named and 0 < len(keys) <= _MAX_KEYS)
        checks.raise_if_any()
        require_reach(admin, tenant)
        pinned = tuple(encode_key(kid, PublicKey.admit(der).der) for kid, der in keys)
        await self._store.add_issuer(
            ExternalIssuer(
                name=name, tenant=tenant, url=url, audience=audience, keys=pinned, created_at=self._clock.now()
            )
        )

    async def remove_issuer(self, admin: str, name: str) -> None:
        """Removes an external issuer and what rests on it, within a second everywhere. Raises NotFound."""
        _check_identifiers(name=name)
        now = self._clock.now()
        revocation = revocation_of_issuer(name, now=now)
        await self._store.delete_issuer(name, within=reach_of(admin), revocation=revocation, now=now)

    async def create_exchange_grant(self, admin: str, grant: ExchangeGrant) -> str:
        """Lets a client speak for the subjects of a source; returns the grant's identifier.

        Raises:
            InvalidRequest: names the fields; NotFound: the client or the issuer.
        """
        now = self._clock.now()
        checks = FieldChecks(known=self._audiences)
        checks.tenant("grant.tenant", grant.tenant)
        checks.identifier("grant.client_id", grant.client_id)
        checks.issuer("grant.source", grant.source)
        checks.identifier("grant.audience", grant.audience)
        checks.scopes("grant.scopes", grant.scopes)
        ahead = grant.expires_at is None or grant.expires_at > now
        checks.that("grant.expires_at", "must lie ahead", holds=ahead)
        foreign = grant.source != OUR_OWN
        checks.that("grant.refresh", "is for subjects of external issuers", holds=foreign or not grant.refresh)
        checks.raise_if_any()
        require_reach(admin, grant.tenant)
        if foreign:
            issuer = await self._store.issuer(grant.source)
            if issuer is None or issuer.tenant != grant.tenant:
                raise NotFound("issuer of the tenant")
        if grant.audience not in self._audiences:
            client = await self._store.client(grant.audience)
            if client is None or client.tenant != grant.tenant:
                raise NotFound("client of the tenant as the audience")
        record = replace(grant, id=new_identifier("exchange"), scopes=tuple(sorted(set(grant.scopes))))
        await self._store.add_exchange_grant(record, within=reach_of(admin))
        return record.id

    async def delete_exchange_grant(self, admin: str, grant_id: str) -> None:
        """Takes an exchange grant back. Raises NotFound."""
        _check_identifiers(id=grant_id)
        await self._store.delete_exchange_grant(grant_id, within=reach_of(admin))


def _check_identifiers(**fields: str) -> None:
    checks = FieldChecks()
    for name, value in fields.items():
        checks.identifier(name, value)
    checks.raise_if_any()
