"""CredentialService on the wire."""

from __future__ import annotations

from typing import Any

import grpc

from casemate.auth.v1 import credential_service_pb2 as messages
from casemate.auth.v1.credential_service_pb2_grpc import CredentialServiceServicer
from services.auth.credential_records import ExchangeGrant
from services.auth.credentials import Credentials
from services.auth.listing import Listing
from services.auth.servicer_admin import administrator, moment
from services.auth.servicer_listing import exchange_grant_to_message, issuer_to_message, place_of

Context = grpc.aio.ServicerContext[Any, Any]


class CredentialServicer(CredentialServiceServicer):
    """Translates; `Credentials` and `Listing` decide. The administrator is the tenant of the verified token."""

    def __init__(self, *, credentials: Credentials, listing: Listing) -> None:
        self._credentials = credentials
        self._listing = listing

    async def CreateClientSecret(  # noqa: N802  # the protocol's names, here and below
        self, request: messages.CreateClientSecretRequest, _context: Context
    ) -> messages.CreateClientSecretResponse:
        """Generates a secret."""
        identifier, secret = await self._credentials.create_secret(administrator(), request.client_id)
        return messages.CreateClientSecretResponse(id=identifier, secret=secret.reveal())

    async def ListClientSecrets(  # noqa: N802
        self, request: messages.ListClientSecretsRequest, _context: Context
    ) -> messages.ListClientSecretsResponse:
        """Lists what is not secret of a client's secrets."""
        response = messages.ListClientSecretsResponse()
        for secret in await self._listing.secrets(administrator(), request.client_id):
            response.secrets.add(id=secret.id).created_at.FromDatetime(secret.created_at)
        return response

    async def DeleteClientSecret(  # noqa: N802
        self, request: messages.DeleteClientSecretRequest, _context: Context
    ) -> messages.DeleteClientSecretResponse:
        """Ends a secret."""
        await self._credentials.delete_secret(administrator(), request.client_id, request.id)
        return messages.DeleteClientSecretResponse()

    async def AddClientKey(  # noqa: N802
        self, request: messages.AddClientKeyRequest, _context: Context
    ) -> messages.AddClientKeyResponse:
        """Adds a key."""
        key_id = await self._credentials.add_key(administrator(), request.client_id, request.public_key)
        return messages.AddClientKeyResponse(key_id=key_id)

    async def ListClientKeys(  # noqa: N802
        self, request: messages.ListClientKeysRequest, _context: Context
    ) -> messages.ListClientKeysResponse:
        """Lists a client's keys."""
        response = messages.ListClientKeysResponse()
        for key in await self._listing.keys(administrator(), request.client_id):
            listed = response.keys.add(key_id=key.key_id, public_key=key.public_key)
            listed.created_at.FromDatetime(key.created_at)
        return response

    async def RemoveClientKey(  # noqa: N802
        self, request: messages.RemoveClientKeyRequest, _context: Context
    ) -> messages.RemoveClientKeyResponse:
        """Ends a key."""
        await self._credentials.remove_key(administrator(), request.client_id, request.key_id)
        return messages.RemoveClientKeyResponse()

    async def RegisterIssuer(  # noqa: N802
        self, request: messages.RegisterIssuerRequest, _context: Context
    ) -> messages.RegisterIssuerResponse:
        """Registers an external issuer."""
        issuer = request.issuer
        await self._credentials.register_issuer(
            administrator(),
            name=issuer.name,
            tenant=issuer.tenant,
            url=issuer.url,
            audience=issuer.audience,
            keys=[(key.kid, key.public_key) for key in issuer.keys],
        )
        return messages.RegisterIssuerResponse()

    async def ListIssuers(  # noqa: N802
        self, request: messages.ListIssuersRequest, _context: Context
    ) -> messages.ListIssuersResponse:
        """Lists external issuers."""
        page = await self._listing.issuers(administrator(), place_of(request))
        issuers = [issuer_to_message(issuer) for issuer in page.records]
        return messages.ListIssuersResponse(issuers=issuers, next_page_token=page.token)

    async def RemoveIssuer(  # noqa: N802
        self, request: messages.RemoveIssuerRequest, _context: Context
    ) -> messages.RemoveIssuerResponse:
        """Removes an external issuer."""
        await self._credentials.remove_issuer(administrator(), request.name)
        return messages.RemoveIssuerResponse()

    async def CreateExchangeGrant(  # noqa: N802
        self, request: messages.CreateExchangeGrantRequest, _context: Context
    ) -> messages.CreateExchangeGrantResponse:
        """Lets a client speak for subjects."""
        wanted = request.grant
        grant = ExchangeGrant(
            id="",
            tenant=wanted.tenant,
            client_id=wanted.client_id,
            source=wanted.source,
            audience=wanted.audience,
            scopes=tuple(wanted.scopes),
            refresh=wanted.refresh,
            expires_at=moment(wanted, "expires_at", "grant.expires_at"),
        )
        identifier = await self._credentials.create_exchange_grant(administrator(), grant)
        return messages.CreateExchangeGrantResponse(id=identifier)

    async def DeleteExchangeGrant(  # noqa: N802
        self, request: messages.DeleteExchangeGrantRequest, _context: Context
    ) -> messages.DeleteExchangeGrantResponse:
        """Takes that back."""
        await self._credentials.delete_exchange_grant(administrator(), request.id)
        return messages.DeleteExchangeGrantResponse()

    async def ListExchangeGrants(  # noqa: N802
        self, request: messages.ListExchangeGrantsRequest, _context: Context
    ) -> messages.ListExchangeGrantsResponse:
        """Lists exchange grants."""
        page = await self._listing.exchange_grants(administrator(), place_of(request))
        grants = [exchange_grant_to_message(grant) for grant in page.records]
        return messages.ListExchangeGrantsResponse(grants=grants, next_page_token=page.token)
