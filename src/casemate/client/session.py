"""Who calls, and the channels on which they do: the root of the client.

A session belongs to one certificate. Its channels verify each service's own
name, and put on every call a token bound to the very certificate that the
connection uses: when the certificate renews, both change together.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import grpc

from casemate.auth.v1 import admin_service_pb2, credential_service_pb2, token_service_pb2
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.client.timestamps import parse_timestamp
from casemate.client.tokens import AccessToken, TokenKey, TokenSource
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.inference.v1 import model_service_pb2
from casemate.keys.v1 import key_service_pb2
from casemate.secret import Secret
from casemate.signing.dataset_manifest import MAXIMUM_MESSAGE_BYTES
from casemate.transport.certificates import CertificatePair, CertificateSource, PinnedPair
from casemate.transport.channel import RotatingChannel, idempotent_methods
from casemate.transport.options import DEFAULT_MAX_MESSAGE_BYTES
from casemate.transport.status import from_rpc_error

ISSUE_SECONDS = 10.0

_MESSAGE_BYTES = {"datasets": MAXIMUM_MESSAGE_BYTES}
"""Services whose messages are larger than most."""

_SERVICES = tuple(
    service
    for module in (
        *(admin_service_pb2, credential_service_pb2, token_service_pb2, dataset_service_pb2),
        *(log_service_pb2, model_service_pb2, key_service_pb2),
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the services are, each as `host:port`."""

    auth: str
    inference: str
    datasets: str

    def of(self, service: str) -> str:
        """The address of a service by its name."""
        return {"auth": self.auth, "inference": self.inference, "datasets": self.datasets}[service]


class Session:
    """One caller's channels and tokens. Safe to share between threads; close it when done.

    Args:
        source: the caller's certificate; started, it is watched for renewal.
        endpoints: where the services are.
        trust_domain: the domain in whose names the services prove themselves.
        clock: judges when tokens are due.
    """

    def __init__(
        self, *, source: CertificateSource, endpoints: Endpoints, trust_domain: str, clock: Clock | None = None
    ) -> None:
        self.source = source
        self.endpoints = endpoints
        self.trust_domain = trust_domain
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._channels: dict[str, RotatingChannel] = {}
        self._pairs: dict[str, CertificatePair] = {}
        self._tokens = TokenSource(fetch=self._fetch, clock=self._clock)

    def service_name(self, service: str) -> str:
        """The name that a service proves: `datasets.casemate.internal`."""
        return f"{service}.{self.trust_domain}"

    @property
    def caller(self) -> str:
        """The SPIFFE ID that its certificate names: who a service says that it answered."""
        return self.source.current.spiffe_id

    def channel(self, service: str) -> RotatingChannel:
        """The channel to a service, made on first use; every call on it carries a token."""
        with self._lock:
            if service not in self._channels:
                self._channels[service] = RotatingChannel(
                    target=self.endpoints.of(service),
                    service_name=self.service_name(service),
                    source=self.source,
                    idempotent_methods=idempotent_methods(*_SERVICES),
                    max_message_bytes=_MESSAGE_BYTES.get(service, DEFAULT_MAX_MESSAGE_BYTES),
                    call_metadata=lambda pair: self._bearer(service, pair),
                )
            return self._channels[service]

    def token(self, audience: str, scopes: tuple[str, ...] = ()) -> AccessToken:
        """A token for `audience`, bound to the present certificate.

        Raises:
            Unauthenticated: no client is registered for this certificate.
            PermissionDenied: a scope is not this client's to have.
        """
        return self._token(audience, scopes, self.source.current)

    def metadata(self, audience: str) -> tuple[tuple[str, str], ...]:
        """The metadata of a call, for channels that are not ours."""
        return self._bearer(audience, self.source.current)

    def present_metadata(self, audience: str) -> tuple[tuple[str, str], ...] | None:
        """The same without asking for a token; None if there is none that is not due. Never waits."""
        found = self._tokens.present(TokenKey(audience, (), self.source.current.thumbprint))
        return None if found is None else (("authorization", f"Bearer {found.text.reveal()}"),)

    def forget_tokens(self) -> None:
        """Drops every token, so that the next call asks for a new one: for when one was refused."""
        self._tokens.forget()

    def close(self) -> None:
        """Closes every channel; calls in flight end."""
        with self._lock:
            channels = list(self._channels.values())
            self._channels.clear()
        for channel in channels:
            channel.close()

    def _bearer(self, audience: str, pair: CertificatePair) -> tuple[tuple[str, str], ...]:
        token = self._token(audience, (), pair)
        return (("authorization", f"Bearer {token.text.reveal()}"),)

    def _token(self, audience: str, scopes: tuple[str, ...], pair: CertificatePair) -> AccessToken:
        present = self.source.current
        if present.thumbprint == pair.thumbprint:
            pair = present  # the same certificate, and maybe other roots beside it: a change of roots begins so
        with self._lock:
            if pair.thumbprint not in self._pairs:
                # The newest two: a channel may still be on the one before.
                self._pairs = dict([*self._pairs.items(), (pair.thumbprint, pair)][-2:])
            self._pairs[pair.thumbprint] = pair
        return self._tokens.token(TokenKey(audience, scopes, pair.thumbprint))

    def _fetch(self, key: TokenKey) -> AccessToken:
        """Asks for a token over a connection of the very certificate that it is to be bound to.

        Over a shared channel it could come bound to a newer one: channels follow a
        renewal one after the other.
        """
        fetched_at = self._clock.now()
        request = token_service_pb2.IssueTokenRequest(audience=key.audience, scopes=key.scopes)
        channel = RotatingChannel(
            target=self.endpoints.auth,
            service_name=self.service_name("auth"),
            source=PinnedPair(self._pairs[key.thumbprint]),
            idempotent_methods=idempotent_methods(*_SERVICES),
        )
        try:
            answer = TokenServiceStub(channel).IssueToken(request, timeout=ISSUE_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            channel.close()
        return AccessToken(
            text=Secret(answer.access_token),
            token_id=answer.token_id,
            fetched_at=fetched_at,
            expires_at=parse_timestamp(answer.expires_at, "expires_at"),
        )
