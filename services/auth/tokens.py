"""The token service, whatever carries it: whom a certificate and a credential prove, and what it gets.

A client that is not proven counts against the certificate that made the attempt (`slowing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from casemate.errors import PermissionDenied, Unauthenticated
from casemate.gate.core.quota import Quota, Shares
from services.auth.administration import Administration
from services.auth.client_authentication import ClientAuthenticator, Credential
from services.auth.exchange import Exchange, Exchanged, Wish
from services.auth.families import Families, Refreshed
from services.auth.introspection import Introspection, LiveToken
from services.auth.records import Client
from services.auth.slowing import Slowing
from services.auth.token_issuer import IssuedToken, TokenIdentifiers, TokenIssuer

REVOKING: Final = Shares(calls_per_second=20.0, burst=200, tenant_calls_per_second=100.0, tenant_burst=1_000)
"""How fast clients may revoke their own tokens: operators' changes wait behind theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """Who asks: a certificate that the gate has proven, and what was shown besides.

    Attributes:
        spiffe_id: the certificate's one name.
        thumbprint: base64url SHA-256 of the leaf.
        not_after: when the leaf ends.
        credential: what was shown besides.
        service: the service that the certificate is of, if it is one's.
    """

    spiffe_id: str
    thumbprint: str
    not_after: datetime
    credential: Credential = field(default_factory=Credential)
    service: str | None = None


class Tokens:
    """Issues, exchanges, refreshes, introspects and revokes."""

    def __init__(
        self,
        *,
        authenticator: ClientAuthenticator,
        slowing: Slowing,
        revoking: Quota,
        issuer: TokenIssuer,
        exchange: Exchange,
        families: Families,
        introspection: Introspection,
        identifiers: TokenIdentifiers,
        administration: Administration,
    ) -> None:
        self._authenticator = authenticator
        self._slowing = slowing
        self._revoking = revoking
        self._issuer = issuer
        self._exchange = exchange
        self._families = families
        self._introspection = introspection
        self._identifiers = identifiers
        self._administration = administration

    async def issue(self, applicant: Applicant, *, audience: str, scopes: Sequence[str]) -> IssuedToken:
        """A token by client credentials (RFC 6749 section 4.4). One read and one signature for a certificate alone.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`, whatever is wrong with who asks.
            InvalidRequest: there is no such audience.
            PermissionDenied: `SCOPE_NOT_GRANTED`.
            Exhausted: it failed too often lately.
        """
        client = await self._client(applicant)
        return await self._issuer.issue(
            client,
            audience=audience,
            scopes=scopes,
            thumbprint=applicant.thumbprint,
            not_after=applicant.not_after,
        )

    async def exchange(self, applicant: Applicant, wish: Wish) -> Exchanged:
        """A token about a subject; see `Exchange.exchange` for what it raises, `issue` for the rest."""
        client = await self._client(applicant)
        return await self._exchange.exchange(
            client, wish, thumbprint=applicant.thumbprint, not_after=applicant.not_after
        )

    async def refresh(self, applicant: Applicant, text: str, *, scopes: Sequence[str]) -> Refreshed:
        """The successor of a refresh token, and an access token.

        Raises:
            Unauthenticated: `GRANT_INVALID`, also for callers that are no client.
            PermissionDenied: `SCOPE_NOT_GRANTED`.
            Exhausted: it failed too often lately.
        """
        try:
            client: Client | None = await self._client(applicant)
        except Unauthenticated:
            client = None  # the token is judged all the same: in these hands it may be a stolen one
        return await self._families.refresh(
            text,
            client=client,
            spiffe_id=applicant.spiffe_id,
            thumbprint=applicant.thumbprint,
            not_after=applicant.not_after,
            scopes=scopes,
        )

    async def introspect(self, applicant: Applicant, text: str) -> LiveToken | None:
        """What a token says, if it is live and concerns whoever asks.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`.
            Exhausted: it failed too often lately.
        """
        if applicant.service is not None:
            return await self._introspection.look(text, audience=applicant.service, client_id=None)
        client = await self._client(applicant)
        return await self._introspection.look(text, audience=client.client_id, client_id=client.client_id)

    async def revoke_own(self, applicant: Applicant, *, token_id: str = "", refresh_token: str = "") -> None:
        """Revokes tokens of the client itself; others have no effect (RFC 7009 section 2.2).

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`.
            Exhausted: it failed too often lately, or revokes faster than `REVOKING`.
        """
        client = await self._client(applicant)
        # Each new revocation is a change of everybody's trust, told to every watcher and to the log.
        self._revoking.spend(tenant=client.tenant, caller=client.client_id)
        if refresh_token:
            try:
                await self._families.end_own(refresh_token, client=client)
            except Unauthenticated:
                return
        if token_id:
            try:
                proven = self._identifiers.verify(token_id, client.client_id)
            except PermissionDenied:
                return
            await self._administration.revoke_own_token(proven)

    async def _client(self, applicant: Applicant) -> Client:
        """Whom the applicant proved. Only this counts against it: a gateway's users may hold grants that ended."""
        shown = applicant.credential.shown
        with self._slowing.attempt(applicant.spiffe_id, shown=shown):
            return await self._authenticator.authenticate(
                spiffe_id=applicant.spiffe_id, credential=applicant.credential
            )
