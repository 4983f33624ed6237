"""What operators say of how clients prove themselves, and for whom they may speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import grpc

from casemate.auth.v1 import credential_service_pb2 as messages
from casemate.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from casemate.client.listing import Listing
from casemate.client.session import Session
from casemate.secret import Secret
from casemate.transport.status import from_rpc_error

Response = TypeVar("Response")


class Credentials:
    """CredentialService with our errors; every change is audited by the service."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = CredentialServiceStub(session.channel("auth"))

    def create_secret(self, client_id: str) -> tuple[str, Secret[str]]:
        """A new secret of a client and its identifier; the service cannot show it again."""
        made = self._call(self._stub.CreateClientSecret, messages.CreateClientSecretRequest(client_id=client_id))
        return made.id, Secret(made.secret)

    def delete_secret(self, client_id: str, identifier: str) -> None:
        """Ends a secret."""
        request = messages.DeleteClientSecretRequest(client_id=client_id, id=identifier)
        self._call(self._stub.DeleteClientSecret, request)

    def add_key(self, client_id: str, public_key: bytes) -> str:
        """Adds a key (SubjectPublicKeyInfo, DER) whose assertions prove a client; returns its identifier."""
        request = messages.AddClientKeyRequest(client_id=client_id, public_key=public_key)
        return self._call(self._stub.AddClientKey, request).key_id

    def remove_key(self, client_id: str, key_id: str) -> None:
        """Ends a key."""
        self._call(self._stub.RemoveClientKey, messages.RemoveClientKeyRequest(client_id=client_id, key_id=key_id))

    def register_issuer(self, *, name: str, tenant: str, url: str, audience: str, keys: Mapping[str, bytes]) -> None:
        """Registers an external issuer by its pinned keys (`kid` → DER)."""
        pinned = [messages.PinnedKey(kid=kid, public_key=der) for kid, der in keys.items()]
        issuer = messages.ExternalIssuer(name=name, tenant=tenant, url=url, audience=audience, keys=pinned)
        self._call(self._stub.RegisterIssuer, messages.RegisterIssuerRequest(issuer=issuer))

    def remove_issuer(self, name: str) -> None:
        """Removes an external issuer and the exchange grants on its subjects."""
        self._call(self._stub.RemoveIssuer, messages.RemoveIssuerRequest(name=name))

    def allow_exchange(
        self,
        *,
        tenant: str,
        client_id: str,
        source: str,
        audience: str,
        scopes: Sequence[str],
        refresh: bool,
        expires_at: datetime | None = None,
    ) -> str:
        """Lets a client speak for the subjects of a source, until a moment if one is given; returns the identifier."""
        grant = messages.ExchangeGrant(
            tenant=tenant, client_id=client_id, source=source, audience=audience, scopes=scopes, refresh=refresh
        )
        if expires_at is not None:
            grant.expires_at.FromDatetime(expires_at)
        return self._call(self._stub.CreateExchangeGrant, messages.CreateExchangeGrantRequest(grant=grant)).id

    def forbid_exchange(self, identifier: str) -> None:
        """Takes an exchange grant back."""
        self._call(self._stub.DeleteExchangeGrant, messages.DeleteExchangeGrantRequest(id=identifier))

    def list_exchanges(self, tenant: str) -> list[messages.ExchangeGrant]:
        """The exchange grants of a tenant's clients."""
        return list(Listing(self._session).exchange_grants(tenant))

    def _call(self, method: Callable[..., Response], request: object) -> Response:
        try:
            return method(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
