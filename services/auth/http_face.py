"""The HTTPS face of the token service, for clients that do not speak gRPC: which path is what, and its server.

A request is proven at its head, before a byte of its body is waited for.

If this fails: see `casemate.transport.https` (who is heard) and `http_forms` (what is
read). What is given out is decided where the rpcs' is, and bound to the certificate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeAlias

from casemate.clock import Clock
from casemate.errors import NotFound
from casemate.gate.adapters.http import HttpCall, HttpGate
from casemate.gate.core.gate import Gate
from casemate.transport.certificates import CertificateSource
from casemate.transport.http_messages import Answer, Request, read_body
from casemate.transport.http_protocol import IDLE, HttpProtocols
from casemate.transport.https import HttpsLimits, HttpsServer
from services.auth.http_endpoints import RPC, TokenEndpoints
from services.auth.http_errors import OAuthRefusal, error_answer, json_answer, malformed_answer
from services.auth.http_forms import MAX_BODY_BYTES, parse_form
from services.auth.server_metadata import MAX_AGE, ServerMetadata
from services.auth.servicer_tokens import TokenServicer
from services.auth.settings import AuthSettings
from services.auth.tokens import Tokens

BODY_WITHIN: Final = timedelta(seconds=10)

Posted: TypeAlias = Callable[[HttpCall, Mapping[str, str]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FacePace:
    """How long the face waits: for a request's head, for its body, and for the whole handshake before."""

    idle: timedelta = IDLE
    body: timedelta = BODY_WITHIN
    limits: HttpsLimits = field(default_factory=HttpsLimits)


class HttpFace:
    """Serves `/oauth2/…` and `/.well-known/…` over mutual TLS 1.3.

    Args:
        source: the server's certificate.
        address: `host:port`; port 0 picks a free one.
        gate: decides about every request.
        tokens: decides what is given.
        metadata: describes the service.
        trust_domain: ends the service's own name.
        clock: for `expires_in`.
        url: where clients reach it, if not at its own name and port.
        pace: how long it waits.
    """

    def __init__(
        self,
        *,
        source: CertificateSource,
        address: str,
        gate: Gate,
        tokens: Tokens,
        metadata: ServerMetadata,
        trust_domain: str,
        clock: Clock,
        url: str | None = None,
        pace: FacePace | None = None,
    ) -> None:
        self._pace = pace or FacePace()
        self._gate = HttpGate(gate)
        self._metadata = metadata
        self._name = f"auth.{trust_domain}"
        self._url = url
        endpoints = TokenEndpoints(tokens=tokens, metadata=metadata, trust_domain=trust_domain, clock=clock)
        self._posted: Mapping[str, tuple[str, Posted]] = {
            "/oauth2/token": (f"{RPC}IssueToken", endpoints.token),
            "/oauth2/revoke": (f"{RPC}RevokeToken", endpoints.revoke),
            "/oauth2/introspect": (f"{RPC}IntrospectToken", endpoints.introspect),
        }
        self._shown: Mapping[str, tuple[str, Callable[[], Answer]]] = {
            "/.well-known/oauth-authorization-server": (f"{RPC}GetServerMetadata", self._describe),
            "/.well-known/jwks.json": (f"{RPC}GetJsonWebKeySet", self._key_set),
        }
        self._protocols = HttpProtocols(answer=self._serve, malformed=malformed_answer, idle=self._pace.idle)
        self._server = HttpsServer(source=source, address=address, protocol=self._protocols, limits=self._pace.limits)

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        return self._server.port

    async def start(self) -> None:
        """Begins to serve. Raises ConfigurationError: the address cannot be bound, or TLS 1.2 would be answered."""
        await self._server.start()

    async def stop(self, grace: timedelta) -> None:
        """Takes no more connections, lets running requests end, and closes the others."""
        self._server.close()
        await self._protocols.drain(grace)
        await self._server.wait_closed()

    async def _serve(self, request: Request) -> Answer:
        path, _, query = request.raw_path.partition("?")
        if path in self._posted:
            method, answer = self._posted[path]
            return await self._gate.serve(
                request, method, answer=lambda call: self._post(call, query, answer), refuse=error_answer
            )
        if path in self._shown:
            method, show = self._shown[path]
            return await self._gate.serve(request, method, answer=lambda call: _show(call, show), refuse=error_answer)
        # Judged, counted and slowed like one that may describe the service, which every proven peer may.
        return await self._gate.serve(request, f"{RPC}GetServerMetadata", answer=_unknown, refuse=error_answer)

    async def _post(self, call: HttpCall, query: str, answer: Posted) -> Answer:
        request = call.request
        if request.method != "POST":
            raise OAuthRefusal("invalid_request", "not POST", status=405, allow="POST")
        if query:
            # RFC 6749 section 3.2: parameters are in the body alone. Addresses are written to logs.
            raise OAuthRefusal("invalid_request", "parameters in the address")
        if len(request.headers.getall("Content-Type", [])) != 1:
            raise OAuthRefusal("invalid_request", "not one content type")
        if len(request.headers.getall("Authorization", [])) > 1:
            raise OAuthRefusal("invalid_request", "more than one way to authenticate")
        body = await read_body(request, limit=MAX_BODY_BYTES, within=self._pace.body)
        return await answer(call, parse_form(request.headers["Content-Type"], body))

    def _describe(self) -> Answer:
        url = self._url or f"https://{self._name}:{self.port}"
        return json_answer(self._metadata.document(url), headers=_cached())

    def _key_set(self) -> Answer:
        return json_answer({"keys": self._metadata.key_set()}, headers=_cached(), kind="application/jwk-set+json")


async def _show(call: HttpCall, show: Callable[[], Answer]) -> Answer:
    if call.request.method not in {"GET", "HEAD"}:
        raise OAuthRefusal("invalid_request", "not GET", status=405, allow="GET, HEAD")
    return show()


async def _unknown(_call: HttpCall) -> Answer:
    raise NotFound("no such path")


def _cached() -> dict[str, str]:
    return {"Cache-Control": f"private, max-age={int(MAX_AGE.total_seconds())}"}


def build_face(
    settings: AuthSettings,
    *,
    source: CertificateSource,
    gate: Gate,
    tokens: TokenServicer,
    clock: Clock,
    pace: FacePace,
) -> HttpFace:
    """The face beside the rpcs of the same service: the same gate, and what they ask too."""
    return HttpFace(
        source=source,
        address=settings.http_address,
        gate=gate,
        tokens=tokens.tokens,
        metadata=tokens.metadata,
        trust_domain=settings.identity.trust_domain,
        clock=clock,
        url=settings.http_url,
        pace=pace,
    )
