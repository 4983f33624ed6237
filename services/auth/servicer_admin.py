"""AdminService on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from casemate.auth.v1 import admin_service_pb2 as messages
from casemate.auth.v1 import trust_pb2
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceServicer
from casemate.errors import FieldViolation, InvalidRequest, PermissionDenied
from casemate.gate.adapters.caller_context import current_caller
from casemate.gate.adapters.records import grant_to_message, revocation_to_message, signer_to_message
from casemate.gate.core.records import Effect, Grant, RevocationKind
from services.auth.administration import FROM_THE_BEGINNING, Administration, SignerRequest
from services.auth.key_schedule import since
from services.auth.listing import Listing, Place
from services.auth.records import Client
from services.auth.servicer_listing import METHODS, client_to_message, place_of, tenant_to_message

if TYPE_CHECKING:
    from google.protobuf.message import Message

Context = grpc.aio.ServicerContext[Any, Any]

_ROLES = {
    trust_pb2.SIGNER_ROLE_SUPPLIER: "supplier",
    trust_pb2.SIGNER_ROLE_PUBLISHER: "publisher",
    trust_pb2.SIGNER_ROLE_OPERATOR: "operator",
}
_EFFECTS = {trust_pb2.EFFECT_ALLOW: Effect.ALLOW, trust_pb2.EFFECT_DENY: Effect.DENY}
_KINDS = {
    trust_pb2.REVOCATION_KIND_TOKEN: RevocationKind.TOKEN,
    trust_pb2.REVOCATION_KIND_SESSION: RevocationKind.SESSION,
    trust_pb2.REVOCATION_KIND_CLIENT: RevocationKind.CLIENT,
    trust_pb2.REVOCATION_KIND_SUBJECT: RevocationKind.SUBJECT,
    trust_pb2.REVOCATION_KIND_KEY: RevocationKind.KEY,
    trust_pb2.REVOCATION_KIND_CERTIFICATE: RevocationKind.CERTIFICATE,
    trust_pb2.REVOCATION_KIND_SPIFFE_ID: RevocationKind.SPIFFE_ID,
}


class AdminServicer(AdminServiceServicer):
    """Translates; `Administration` and `Listing` decide. The administrator is the tenant of the verified token."""

    def __init__(self, *, administration: Administration, listing: Listing) -> None:
        self._administration = administration
        self._listing = listing

    async def CreateTenant(  # noqa: N802  # the protocol's names, here and below
        self, request: messages.CreateTenantRequest, _context: Context
    ) -> messages.CreateTenantResponse:
        """Creates a tenant."""
        await self._administration.create_tenant(administrator(), request.tenant)
        return messages.CreateTenantResponse()

    async def ListTenants(  # noqa: N802
        self, request: messages.ListTenantsRequest, _context: Context
    ) -> messages.ListTenantsResponse:
        """Lists tenants."""
        page = await self._listing.tenants(administrator(), Place(size=request.page_size, token=request.page_token))
        tenants = [tenant_to_message(tenant) for tenant in page.records]
        return messages.ListTenantsResponse(tenants=tenants, next_page_token=page.token)

    async def CreateClient(  # noqa: N802
        self, request: messages.CreateClientRequest, _context: Context
    ) -> messages.CreateClientResponse:
        """Registers a client."""
        method = METHODS.get(request.client.authentication)
        if method is None:
            raise _invalid("client.authentication", "is not one that exists")
        client = Client(
            client_id=request.client.client_id,
            tenant=request.client.tenant,
            spiffe_id=request.client.spiffe_id,
            audiences=tuple(request.client.audiences),
            scopes=tuple(request.client.scopes),
            enabled=True,
            created_at=FROM_THE_BEGINNING,
            authentication=method,
        )
        await self._administration.create_client(administrator(), client)
        return messages.CreateClientResponse()

    async def ListClients(  # noqa: N802
        self, request: messages.ListClientsRequest, _context: Context
    ) -> messages.ListClientsResponse:
        """Lists clients."""
        page = await self._listing.clients(administrator(), place_of(request))
        clients = [client_to_message(client) for client in page.records]
        return messages.ListClientsResponse(clients=clients, next_page_token=page.token)

    async def GetClient(  # noqa: N802
        self, request: messages.GetClientRequest, _context: Context
    ) -> messages.GetClientResponse:
        """Describes a client."""
        client = await self._listing.client(administrator(), request.client_id)
        return messages.GetClientResponse(client=client_to_message(client))

    async def DisableClient(  # noqa: N802
        self, request: messages.DisableClientRequest, _context: Context
    ) -> messages.DisableClientResponse:
        """Disables a client."""
        await self._administration.disable_client(administrator(), request.client_id)
        return messages.DisableClientResponse()

    async def EnableClient(  # noqa: N802
        self, request: messages.EnableClientRequest, _context: Context
    ) -> messages.EnableClientResponse:
        """Lets a disabled client have tokens again."""
        response = messages.EnableClientResponse()
        until = await self._administration.enable_client(administrator(), request.client_id)
        if until is not None:
            response.tokens_count_from.FromDatetime(until)
        return response

    async def CreateGrant(  # noqa: N802
        self, request: messages.CreateGrantRequest, _context: Context
    ) -> messages.CreateGrantResponse:
        """Creates a grant."""
        wanted = request.grant
        if wanted.id:
            raise _invalid("grant.id", "must be empty: the service gives it")
        effect = _EFFECTS.get(wanted.effect)
        if effect is None:
            raise _invalid("grant.effect", "must be allow or deny")
        grant = Grant(
            id="",
            tenant=wanted.tenant,
            caller=wanted.caller,
            verb=wanted.verb,
            resource=wanted.resource,
            effect=effect,
            expires_at=moment(wanted, "expires_at", "grant.expires_at"),
        )
        return messages.CreateGrantResponse(id=await self._administration.create_grant(administrator(), grant))

    async def DeleteGrant(  # noqa: N802
        self, request: messages.DeleteGrantRequest, _context: Context
    ) -> messages.DeleteGrantResponse:
        """Removes a grant."""
        await self._administration.delete_grant(administrator(), request.id)
        return messages.DeleteGrantResponse()

    async def ListGrants(  # noqa: N802
        self, request: messages.ListGrantsRequest, _context: Context
    ) -> messages.ListGrantsResponse:
        """Lists live grants."""
        page = await self._listing.grants(administrator(), place_of(request))
        grants = [grant_to_message(grant) for grant in page.records]
        return messages.ListGrantsResponse(grants=grants, next_page_token=page.token)

    async def RegisterSigner(  # noqa: N802
        self, request: messages.RegisterSignerRequest, _context: Context
    ) -> messages.RegisterSignerResponse:
        """Registers a signer."""
        wanted = SignerRequest(
            tenant=request.tenant,
            role=_ROLES.get(request.role, ""),
            public_key_der=request.public_key,
            proof=request.proof,
            valid_until=moment(request, "valid_until", "valid_until"),
        )
        return messages.RegisterSignerResponse(
            key_id=await self._administration.register_signer(administrator(), wanted)
        )

    async def ListSigners(  # noqa: N802
        self, request: messages.ListSignersRequest, _context: Context
    ) -> messages.ListSignersResponse:
        """Lists signers."""
        page = await self._listing.signers(administrator(), place_of(request))
        signers = [signer_to_message(signer) for signer in page.records]
        return messages.ListSignersResponse(signers=signers, next_page_token=page.token)

    async def RevokeSigner(  # noqa: N802
        self, request: messages.RevokeSignerRequest, _context: Context
    ) -> messages.RevokeSignerResponse:
        """Revokes a signer."""
        from_when = moment(request, "compromised_since", "compromised_since")
        await self._administration.revoke_signer(administrator(), request.key_id, since=from_when)
        return messages.RevokeSignerResponse()

    async def ListTokenKeys(  # noqa: N802
        self, _request: messages.ListTokenKeysRequest, _context: Context
    ) -> messages.ListTokenKeysResponse:
        """Lists the keys that sign access tokens."""
        response = messages.ListTokenKeysResponse()
        for key, until in await self._administration.list_token_keys(administrator()):
            status = response.keys.add(kid=key.kid, algorithm=key.algorithm, state=key.state)
            status.since.FromDatetime(since(key))
            if until is not None:
                status.until.FromDatetime(until)
        return response

    async def Revoke(  # noqa: N802
        self, request: messages.RevokeRequest, _context: Context
    ) -> messages.RevokeResponse:
        """Revokes tokens or certificates."""
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise _invalid("kind", "must be set")
        return messages.RevokeResponse(id=await self._administration.revoke(administrator(), kind, request.value))

    async def ListRevocations(  # noqa: N802
        self, request: messages.ListRevocationsRequest, _context: Context
    ) -> messages.ListRevocationsResponse:
        """Lists what is revoked."""
        page = await self._listing.revocations(administrator(), place_of(request))
        found = [revocation_to_message(revocation) for revocation in page.records]
        return messages.ListRevocationsResponse(revocations=found, next_page_token=page.token)


def administrator() -> str:
    """The tenant that administers: of the verified token."""
    tenant = current_caller().tenant
    if tenant is None:
        raise PermissionDenied("administration without a token")
    return tenant


def moment(message: Message, name: str, field: str) -> datetime | None:
    """A timestamp of a request, None if it is not set."""
    if not message.HasField(name):
        return None
    try:
        moment: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _invalid(field, "is not a moment") from None
    return moment


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {description}", violations=(FieldViolation(field, description),))
