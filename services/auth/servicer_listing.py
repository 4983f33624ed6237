"""What lists of the authority look like on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from casemate.auth.v1 import admin_service_pb2 as administration
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import release_service_pb2 as releases
from services.auth.credential_records import ExchangeGrant, ExternalIssuer
from services.auth.listing import Place
from services.auth.records import Authentication, Client, Tenant
from services.auth.subjects import parse_pinned_key

PagedRequest: TypeAlias = (
    administration.ListClientsRequest
    | administration.ListGrantsRequest
    | administration.ListRevocationsRequest
    | administration.ListSignersRequest
    | credentials.ListIssuersRequest
    | credentials.ListExchangeGrantsRequest
    | releases.ListReleasesRequest
)

METHODS: Final[Mapping[int, Authentication]] = MappingProxyType(
    {
        administration.CLIENT_AUTHENTICATION_UNSPECIFIED: "certificate",
        administration.CLIENT_AUTHENTICATION_CERTIFICATE: "certificate",
        administration.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT: "private_key_jwt",
        administration.CLIENT_AUTHENTICATION_SECRET: "client_secret",
    }
)
"""What a client shows besides its certificate, as the wire has it."""
_NUMBERS: Final[Mapping[Authentication, administration.ClientAuthentication]] = MappingProxyType(
    {
        "certificate": administration.CLIENT_AUTHENTICATION_CERTIFICATE,
        "private_key_jwt": administration.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT,
        "client_secret": administration.CLIENT_AUTHENTICATION_SECRET,
    }
)


def place_of(request: PagedRequest) -> Place:
    """Which page a request asks for."""
    return Place(tenant=request.tenant, size=request.page_size, token=request.page_token)


def tenant_to_message(tenant: Tenant) -> administration.Tenant:
    """A tenant."""
    message = administration.Tenant(name=tenant.name)
    message.created_at.FromDatetime(tenant.created_at)
    return message


def client_to_message(client: Client) -> administration.ClientStatus:
    """A client as it stands."""
    described = administration.Client(
        client_id=client.client_id,
        tenant=client.tenant,
        spiffe_id=client.spiffe_id,
        audiences=client.audiences,
        scopes=client.scopes,
        authentication=_NUMBERS[client.authentication],
    )
    message = administration.ClientStatus(client=described, enabled=client.enabled)
    message.created_at.FromDatetime(client.created_at)
    return message


def issuer_to_message(issuer: ExternalIssuer) -> credentials.ExternalIssuer:
    """An external issuer with its pinned keys."""
    pinned = [parse_pinned_key(key) for key in issuer.keys]
    return credentials.ExternalIssuer(
        name=issuer.name,
        tenant=issuer.tenant,
        url=issuer.url,
        audience=issuer.audience,
        keys=[credentials.PinnedKey(kid=kid, public_key=der) for kid, der in pinned],
    )


def exchange_grant_to_message(grant: ExchangeGrant) -> credentials.ExchangeGrant:
    """Who may speak for whose subjects."""
    message = credentials.ExchangeGrant(
        id=grant.id,
        tenant=grant.tenant,
        client_id=grant.client_id,
        source=grant.source,
        audience=grant.audience,
        scopes=grant.scopes,
        refresh=grant.refresh,
    )
    if grant.expires_at is not None:
        message.expires_at.FromDatetime(grant.expires_at)
    return message
