"""Who a client is: its certificate always, and what else it registered to show.

Unknown, disabled, wrong certificate, wrong method and wrong proof get one answer,
after the same work. Source: RFC 8705 section 2, RFC 7523 section 3, RFC 6749 section 2.3.

If this fails: a caller gets tokens of another client, bound to its own certificate.
Grants are matched by the certificate's SPIFFE ID, so most open nothing for it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from casemate.clock import Clock
from casemate.errors import AlreadyExists, Reason, Unauthenticated
from casemate.secret import Secret
from services.auth.client_secrets import SecretDigests
from services.auth.foreign_tokens import ForeignToken, instant, parse_foreign, verify_foreign
from services.auth.records import Authentication, Client
from services.auth.store.credentials import CredentialStore
from services.auth.validation import is_identifier

MAX_ASSERTION_LIFETIME: Final = timedelta(minutes=5)
_SKEW: Final = timedelta(seconds=5)
_REASON: Final = Reason.CLIENT_UNKNOWN
_MAX_JTI_LENGTH: Final = 256
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NOBODY: Final = "-"
"""Looked up for names that no client can have, so that they cost what others do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a client shows besides its certificate. Nothing: it is the certificate's own client.

    Attributes:
        client_id: who it says it is; may be empty with an assertion, which names its client.
        assertion: a JWT by a key of its own (RFC 7523).
        secret: its generated secret.
    """

    client_id: str = ""
    assertion: Secret[str] | None = None
    secret: Secret[str] | None = None

    @property
    def shown(self) -> str:
        """What kind of proof, of which client: attempts that agree in this are attempts at one thing."""
        kind = "assertion" if self.assertion is not None else "secret" if self.secret is not None else "certificate"
        return f"{kind} {self.client_id[:256]}"


class ClientAuthenticator:
    """Proves clients.

    Args:
        store: clients and their credentials.
        digests: compares secrets.
        issuer: our own identifier: the only `aud` of an assertion.
        clock: says when now is.
        by_certificate: finds the client whose certificate alone proves it; one read if not given.
    """

    def __init__(
        self,
        *,
        store: CredentialStore,
        digests: SecretDigests,
        issuer: str,
        clock: Clock,
        by_certificate: Callable[[str], Awaitable[Client | None]] | None = None,
    ) -> None:
        self._store = store
        self._by_certificate = by_certificate or store.client_by_certificate
        self._digests = digests
        self._issuer = issuer
        self._clock = clock

    async def authenticate(self, *, spiffe_id: str, credential: Credential) -> Client:
        """The enabled client that a proven certificate and a credential name together.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`, whatever is wrong.
        """
        if credential.assertion is not None and credential.secret is not None:
            raise _unknown("two credentials at once")
        if credential.assertion is not None:
            return await self._by_assertion(spiffe_id, credential.client_id, credential.assertion)
        if credential.secret is not None:
            return await self._by_secret(spiffe_id, credential.client_id, credential.secret)
        client = await self._by_certificate(spiffe_id)
        if credential.client_id and client is not None and client.client_id != credential.client_id:
            raise _unknown("the certificate's client is another")
        return _admitted(client, spiffe_id=spiffe_id, method="certificate")

    async def _by_secret(self, spiffe_id: str, client_id: str, secret: Secret[str]) -> Client:
        client_id = client_id if is_identifier(client_id) else _NOBODY
        client = await self._store.client(client_id)
        stored = await self._store.secrets_of(client_id)
        self._digests.verify(client_id, secret, [one.digest for one in stored])
        return _admitted(client, spiffe_id=spiffe_id, method="client_secret")

    async def _by_assertion(self, spiffe_id: str, client_id: str, assertion: Secret[str]) -> Client:
        token = parse_foreign(assertion.reveal(), reason=_REASON)
        issuer = token.claims.get("iss")
        if not isinstance(issuer, str) or client_id not in ("", issuer):
            raise _unknown("the assertion is another client's")
        issuer = issuer if is_identifier(issuer) else _NOBODY
        client = await self._store.client(issuer)
        keys = {key.key_id: key.public_key for key in await self._store.keys_of(issuer)}
        verify_foreign(token, keys, reason=_REASON)
        client = _admitted(client, spiffe_id=spiffe_id, method="private_key_jwt")
        await self._use(client, token)
        return client

    async def _use(self, client: Client, token: ForeignToken) -> None:
        claims, now = token.claims, self._clock.now()
        if claims.get("sub") != client.client_id or claims.get("aud") != self._issuer:
            # One string: in a list, another server could stand beside us and pass the assertion on.
            raise _unknown("the assertion is about another, or for another")
        expires_at = instant(claims, "exp", reason=_REASON)
        if not now < expires_at <= now + MAX_ASSERTION_LIFETIME + _SKEW:
            raise _unknown("the assertion has expired, or lives too long")
        for name in ("iat", "nbf"):
            if name in claims and instant(claims, name, reason=_REASON) > now + _SKEW:
                raise _unknown("the assertion is of the future")
        jti = claims.get("jti")
        # JSON can escape half a surrogate pair, which is no character and has no bytes.
        if not isinstance(jti, str) or not 0 < len(jti) <= _MAX_JTI_LENGTH or _SURROGATE.search(jti) is not None:
            raise _unknown("the assertion has no identifier")
        try:
            await self._store.use_assertion(client.client_id, jti, expires_at=expires_at)
        except AlreadyExists:
            raise _unknown("the assertion was used") from None


def _admitted(client: Client | None, *, spiffe_id: str, method: Authentication) -> Client:
    if client is None or not client.enabled or client.spiffe_id != spiffe_id or client.authentication != method:
        raise _unknown(f"no enabled client is {spiffe_id} by {method}")
    return client


def _unknown(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, reason=_REASON)
