"""Tokens by certificate: who asks is whom the certificate names, and nobody else has to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from casemate.errors import PermissionDenied, Reason, Unauthenticated
from services.auth.administration import Administration
from services.auth.families import Families, Refreshed
from services.auth.records import Client
from services.auth.store.authority import AuthorityStore
from services.auth.token_issuer import IssuedToken, TokenIdentifiers, TokenIssuer


class Tokens:
    """Issues tokens to clients and revokes their own."""

    def __init__(
        self,
        *,
        store: AuthorityStore,
        issuer: TokenIssuer,
        identifiers: TokenIdentifiers,
        administration: Administration,
        families: Families,
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._identifiers = identifiers
        self._administration = administration
        self._families = families

    async def issue(
        self, *, spiffe_id: str, thumbprint: str, not_after: datetime, audience: str, scopes: Sequence[str]
    ) -> IssuedToken:
        """A token for the client that a proven certificate names. Costs one read and one signature.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`: no client, a disabled one, or one whose row does not verify.
            InvalidRequest: there is no such audience.
            PermissionDenied: `SCOPE_NOT_GRANTED`.
        """
        client = await self._client(spiffe_id)
        return self._issuer.issue(client, audience=audience, scopes=scopes, thumbprint=thumbprint, not_after=not_after)

    async def refresh(
        self, text: str, *, spiffe_id: str, thumbprint: str, not_after: datetime, scopes: Sequence[str]
    ) -> Refreshed:
        """The successor of a refresh token, and an access token.

        Raises:
            Unauthenticated: `GRANT_INVALID`, also for callers that are no client.
            PermissionDenied: `SCOPE_NOT_GRANTED`.
        """
        client = await self._store.client_of(spiffe_id)
        return await self._families.refresh(
            text,
            client=client if client is not None and client.enabled else None,
            spiffe_id=spiffe_id,
            thumbprint=thumbprint,
            not_after=not_after,
            scopes=scopes,
        )

    async def revoke_own_family(self, *, spiffe_id: str, refresh_token: str) -> None:
        """Ends the family of a refresh token of the client itself; other texts have no effect.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`.
        """
        client = await self._client(spiffe_id)
        try:
            await self._families.end_own(refresh_token, client=client)
        except Unauthenticated:
            return

    async def revoke_own(self, *, spiffe_id: str, token_id: str) -> None:
        """Revokes a token of the client itself; other identifiers have no effect (RFC 7009 section 2.2).

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`.
        """
        client = await self._client(spiffe_id)
        try:
            proven = self._identifiers.verify(token_id, client.client_id)
        except PermissionDenied:
            return
        await self._administration.revoke_own_token(proven)

    async def _client(self, spiffe_id: str) -> Client:
        client = await self._store.client_of(spiffe_id)
        if client is None or not client.enabled:
            raise Unauthenticated(f"no enabled client is {spiffe_id}", reason=Reason.CLIENT_UNKNOWN)
        return client
