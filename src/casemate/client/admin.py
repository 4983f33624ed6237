"""What operators change: tenants, clients, grants, signers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, TypeAlias, TypeVar

import grpc

from casemate.auth.v1 import admin_service_pb2 as messages
from casemate.auth.v1 import trust_pb2 as records
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.client.listing import Listing
from casemate.client.session import Session
from casemate.client.timestamps import parse_timestamp
from casemate.signing.signers import Role
from casemate.transport.status import from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")

Authentication: TypeAlias = Literal["certificate", "private-key-jwt", "secret"]

AUTHENTICATIONS = {
    "certificate": messages.CLIENT_AUTHENTICATION_CERTIFICATE,
    "private-key-jwt": messages.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT,
    "secret": messages.CLIENT_AUTHENTICATION_SECRET,
}
REVOCATIONS = {
    "token": records.REVOCATION_KIND_TOKEN,
    "session": records.REVOCATION_KIND_SESSION,
    "client": records.REVOCATION_KIND_CLIENT,
    "subject": records.REVOCATION_KIND_SUBJECT,
    "spiffe-id": records.REVOCATION_KIND_SPIFFE_ID,
    "certificate": records.REVOCATION_KIND_CERTIFICATE,
}
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
        self,
        *,
        client_id: str,
        tenant: str,
        spiffe_id: str,
        audiences: Sequence[str],
        scopes: Sequence[str],
        authentication: Authentication = "certificate",
    ) -> None:
        """Registers who may ask for tokens, for which, and what it shows besides its certificate."""
        client = messages.Client(
            client_id=client_id,
            tenant=tenant,
            spiffe_id=spiffe_id,
            audiences=audiences,
            scopes=scopes,
            authentication=AUTHENTICATIONS[authentication],
        )
        self._call(self._stub.CreateClient, messages.CreateClientRequest(client=client))

    def disable_client(self, client_id: str) -> None:
        """Disables a client and revokes what it holds."""
        self._call(self._stub.DisableClient, messages.DisableClientRequest(client_id=client_id))

    def enable_client(self, client_id: str) -> datetime | None:
        """Lets a disabled client have tokens again; until the moment returned, if one is, they are refused.

        Raises:
            StoredDataUnreadable: the moment is none.
        """
        response = self._call(self._stub.EnableClient, messages.EnableClientRequest(client_id=client_id))
        if not response.HasField("tokens_count_from"):
            return None
        return parse_timestamp(response.tokens_count_from, "tokens_count_from")

    def create_grant(
        self,
        *,
        tenant: str,
        caller: str,
        verb: str,
        resource: str,
        expires_at: datetime | None = None,
        deny: bool = False,
    ) -> str:
        """Allows callers a verb on a resource of the tenant, or denies it; returns the grant's identifier.

        Until a moment if one is given. A denial wins over whatever allows.
        """
        effect = records.EFFECT_DENY if deny else records.EFFECT_ALLOW
        grant = records.Grant(tenant=tenant, caller=caller, verb=verb, resource=resource, effect=effect)
        if expires_at is not None:
            grant.expires_at.FromDatetime(expires_at)
        return self._call(self._stub.CreateGrant, messages.CreateGrantRequest(grant=grant)).id

    def delete_grant(self, identifier: str) -> None:
        """Removes a grant."""
        self._call(self._stub.DeleteGrant, messages.DeleteGrantRequest(id=identifier))

    def list_grants(self, tenant: str) -> list[records.Grant]:
        """The live grants on a tenant's resources."""
        return list(Listing(self._session).grants(tenant))

    def register_signer(
        self, *, tenant: str, role: Role, public_key: bytes, proof: bytes, valid_until: datetime | None = None
    ) -> str:
        """Registers a signer's public key on its proof of possession; returns the key id.

        Its signatures count until `valid_until`; for a year if that is not given.
        """
        request = messages.RegisterSignerRequest(tenant=tenant, role=ROLES[role], public_key=public_key, proof=proof)
        if valid_until is not None:
            request.valid_until.FromDatetime(valid_until)
        return self._call(self._stub.RegisterSigner, request).key_id

    def revoke_signer(self, key_id: str, *, compromised_since: datetime | None = None) -> None:
        """Revokes a signer: nothing that it signed since a moment is trusted; nothing at all if that is not given."""
        request = messages.RevokeSignerRequest(key_id=key_id)
        if compromised_since is not None:
            request.compromised_since.FromDatetime(compromised_since)
        self._call(self._stub.RevokeSigner, request)

    def list_token_keys(self) -> list[messages.TokenKeyStatus]:
        """The keys that sign access tokens, for operators of the house tenant."""
        return list(self._call(self._stub.ListTokenKeys, messages.ListTokenKeysRequest()).keys)

    def revoke_token_key(self, kid: str) -> str:
        """Ends a key and every token that it signed, within a second; another signs from then on."""
        request = messages.RevokeRequest(kind=records.REVOCATION_KIND_KEY, value=kid)
        return self._call(self._stub.Revoke, request).id

    def revoke_token(self, token_id: str) -> str:
        """Revokes one token everywhere; returns the revocation's identifier."""
        request = messages.RevokeRequest(kind=records.REVOCATION_KIND_TOKEN, value=token_id)
        return self._call(self._stub.Revoke, request).id

    def revoke(self, kind: str, value: str) -> str:
        """Revokes what has this value, of a kind in `REVOCATIONS`, everywhere; returns the revocation's identifier."""
        request = messages.RevokeRequest(kind=REVOCATIONS[kind], value=value)
        return self._call(self._stub.Revoke, request).id

    def _call(self, method: Callable[..., Response], request: object) -> Response:
        try:
            return method(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
