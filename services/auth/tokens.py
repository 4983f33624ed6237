"""Tokens by certificate: who asks is whom the certificate names, and nobody else has to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from casemate.errors import PermissionDenied, Reason, Unauthenticated
from services.auth.administration import Administration
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
    ) -> None:
        self._store = store
        self._issuer = issuer
        self._identifiers = identifiers
        self._administration = administration

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
