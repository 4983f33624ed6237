"""What operators see of the authority: every list goes through its pages by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from casemate.auth.v1 import admin_service_pb2 as administration
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import release_service_pb2 as releases
from casemate.auth.v1 import trust_pb2 as records
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from casemate.auth.v1.release_service_pb2_grpc import ReleaseServiceStub
from casemate.client.pages import every_page
from casemate.client.session import Session
from casemate.transport.status import from_rpc_error

Response = TypeVar("Response")


class Listing:
    """Reads lists, with our errors. `tenant` is whose; empty for every tenant that the caller may act on.

    Args:
        session: of an administrator.
        page_size: of each page; 0 for what the service thinks good.
    """

    def __init__(self, session: Session, *, page_size: int = 0) -> None:
        channel = session.channel("auth")
        self._admin = AdminServiceStub(channel)
        self._credentials = CredentialServiceStub(channel)
        self._releases = ReleaseServiceStub(channel)
        self._size = page_size

    def tenants(self) -> Iterator[administration.Tenant]:
        """Tenants, by name."""

        def ask(token: str) -> administration.ListTenantsResponse:
            request = administration.ListTenantsRequest(page_size=self._size, page_token=token)
            return _call(self._admin.ListTenants, request)

        for page in every_page(ask):
            yield from page.tenants

    def clients(self, tenant: str = "") -> Iterator[administration.ClientStatus]:
        """Clients, by identifier, disabled ones too."""

        def ask(token: str) -> administration.ListClientsResponse:
            request = administration.ListClientsRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._admin.ListClients, request)

        for page in every_page(ask):
            yield from page.clients

    def client(self, client_id: str) -> administration.ClientStatus:
        """One client."""
        return _call(self._admin.GetClient, administration.GetClientRequest(client_id=client_id)).client

    def grants(self, tenant: str = "") -> Iterator[records.Grant]:
        """Live grants, by identifier."""

        def ask(token: str) -> administration.ListGrantsResponse:
            request = administration.ListGrantsRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._admin.ListGrants, request)

        for page in every_page(ask):
            yield from page.grants

    def revocations(self, tenant: str = "") -> Iterator[records.Revocation]:
        """What is revoked and could still matter, by identifier; of a tenant, what its names say."""

        def ask(token: str) -> administration.ListRevocationsResponse:
            request = administration.ListRevocationsRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._admin.ListRevocations, request)

        for page in every_page(ask):
            yield from page.revocations

    def signers(self, tenant: str = "") -> Iterator[records.Signer]:
        """Signers, by key id, revoked ones too."""

        def ask(token: str) -> administration.ListSignersResponse:
            request = administration.ListSignersRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._admin.ListSigners, request)

        for page in every_page(ask):
            yield from page.signers

    def issuers(self, tenant: str = "") -> Iterator[credentials.ExternalIssuer]:
        """External issuers, by name."""

        def ask(token: str) -> credentials.ListIssuersResponse:
            request = credentials.ListIssuersRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._credentials.ListIssuers, request)

        for page in every_page(ask):
            yield from page.issuers

    def exchange_grants(self, tenant: str = "") -> Iterator[credentials.ExchangeGrant]:
        """Exchange grants, by identifier."""

        def ask(token: str) -> credentials.ListExchangeGrantsResponse:
            request = credentials.ListExchangeGrantsRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._credentials.ListExchangeGrants, request)

        for page in every_page(ask):
            yield from page.grants

    def releases(self, tenant: str = "") -> Iterator[records.Release]:
        """Releases, by tenant and model."""

        def ask(token: str) -> releases.ListReleasesResponse:
            request = releases.ListReleasesRequest(tenant=tenant, page_size=self._size, page_token=token)
            return _call(self._releases.ListReleases, request)

        for page in every_page(ask):
            yield from page.releases

    def secrets(self, client_id: str) -> list[credentials.ClientSecretStatus]:
        """The live secrets of a client: when each was made, never what it is."""
        request = credentials.ListClientSecretsRequest(client_id=client_id)
        return list(_call(self._credentials.ListClientSecrets, request).secrets)

    def keys(self, client_id: str) -> list[credentials.ClientKey]:
        """The keys of a client."""
        request = credentials.ListClientKeysRequest(client_id=client_id)
        return list(_call(self._credentials.ListClientKeys, request).keys)


def _call(method: Callable[..., Response], request: object) -> Response:
    try:
        return method(request)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
