"""What operators change: tenants, clients, grants, signers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from casemate.auth.v1 import admin_service_pb2 as messages
from casemate.auth.v1 import trust_pb2 as records
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.client.session import Session
from casemate.signing.signers import Role
from casemate.transport.status import from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")

ROLES = {
    "supplier": records.SIGNER_ROLE_SUPPLIER,
    "publisher": records.SIGNER_ROLE_PUBLISHER,
    "operator": records.SIGNER_ROLE_OPERATOR,
}


class Administration:
    """AdminService with our errors; every change is audited by the service."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = AdminServiceStub(session.channel("auth"))

    def create_tenant(self, tenant: str) -> None:
        """Creates a tenant."""
        self._call(self._stub.CreateTenant, messages.CreateTenantRequest(tenant=tenant))

    def create_client(
        self, *, client_id: str, tenant: str, spiffe_id: str, audiences: Sequence[str], scopes: Sequence[str]
    ) -> None:
        """Registers who may ask for tokens, and for which."""
        client = messages.Client(
            client_id=client_id, tenant=tenant, spiffe_id=spiffe_id, audiences=audiences, scopes=scopes
        )
        self._call(self._stub.CreateClient, messages.CreateClientRequest(client=client))

    def disable_client(self, client_id: str) -> None:
        """Disables a client and revokes what it holds."""
        self._call(self._stub.DisableClient, messages.DisableClientRequest(client_id=client_id))

    def create_grant(self, *, tenant: str, caller: str, verb: str, resource: str) -> str:
        """Allows callers a verb on a resource of the tenant; returns the grant's identifier."""
        grant = records.Grant(tenant=tenant, caller=caller, verb=verb, resource=resource, effect=records.EFFECT_ALLOW)
        return self._call(self._stub.CreateGrant, messages.CreateGrantRequest(grant=grant)).id

    def delete_grant(self, identifier: str) -> None:
        """Removes a grant."""
        self._call(self._stub.DeleteGrant, messages.DeleteGrantRequest(id=identifier))

    def list_grants(self, tenant: str) -> list[records.Grant]:
        """The live grants on a tenant's resources."""
        return list(self._call(self._stub.ListGrants, messages.ListGrantsRequest(tenant=tenant)).grants)

    def register_signer(self, *, tenant: str, role: Role, public_key: bytes, proof: bytes) -> str:
        """Registers a signer's public key on its proof of possession; returns the key id."""
        request = messages.RegisterSignerRequest(tenant=tenant, role=ROLES[role], public_key=public_key, proof=proof)
        return self._call(self._stub.RegisterSigner, request).key_id

    def revoke_signer(self, key_id: str) -> None:
        """Revokes a signer from the beginning: nothing it signed is trusted."""
        self._call(self._stub.RevokeSigner, messages.RevokeSignerRequest(key_id=key_id))

    def revoke_token(self, token_id: str) -> str:
        """Revokes one token everywhere; returns the revocation's identifier."""
        request = messages.RevokeRequest(kind=records.REVOCATION_KIND_TOKEN, value=token_id)
        return self._call(self._stub.Revoke, request).id

    def _call(self, method: Callable[..., Response], request: object) -> Response:
        try:
            return method(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
