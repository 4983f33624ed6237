"""TokenService on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from casemate.auth.v1 import token_service_pb2 as messages
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceServicer
from casemate.errors import FieldViolation, InvalidRequest
from casemate.gate.adapters.caller_context import current_caller
from casemate.secret import Secret
from services.auth.client_authentication import Credential
from services.auth.exchange import SubjectTokenKind, Wish
from services.auth.server_metadata import ServerMetadata
from services.auth.tokens import Applicant, Tokens

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS = {
    messages.SUBJECT_TOKEN_TYPE_ACCESS_TOKEN: SubjectTokenKind.ACCESS_TOKEN,
    messages.SUBJECT_TOKEN_TYPE_JWT: SubjectTokenKind.JWT,
}


class TokenServicer(TokenServiceServicer):
    """Translates; `Tokens` decides. The HTTPS face translates for the same two."""

    def __init__(self, *, tokens: Tokens, metadata: ServerMetadata) -> None:
        self.tokens = tokens
        self.metadata = metadata

    async def IssueToken(  # noqa: N802  # the protocol's names, here and below
        self, request: messages.IssueTokenRequest, _context: Context
    ) -> messages.IssueTokenResponse:
        """A token for the caller's certificate."""
        issued = await self.tokens.issue(
            _applicant(request.credential), audience=request.audience, scopes=tuple(request.scopes)
        )
        return messages.IssueTokenResponse(
            access_token=issued.token.reveal(),
            expires_at=_timestamp(issued.expires_at),
            scopes=issued.scopes,
            token_id=issued.token_id,
        )

    async def ExchangeToken(  # noqa: N802
        self, request: messages.ExchangeTokenRequest, _context: Context
    ) -> messages.ExchangeTokenResponse:
        """A token about a subject, for the caller's certificate."""
        kind = _KINDS.get(request.subject_token_type)
        if kind is None:
            violation = FieldViolation("subject_token_type", "must be set")
            raise InvalidRequest("no type of subject token", violations=(violation,))
        wish = Wish(
            subject_token=Secret(request.subject_token),
            kind=kind,
            audience=request.audience,
            scopes=tuple(request.scopes),
            refresh=request.request_refresh_token,
        )
        exchanged = await self.tokens.exchange(_applicant(request.credential), wish)
        return messages.ExchangeTokenResponse(
            access_token=exchanged.access.token.reveal(),
            expires_at=_timestamp(exchanged.access.expires_at),
            scopes=exchanged.access.scopes,
            token_id=exchanged.access.token_id,
            refresh_token="" if exchanged.refresh is None else exchanged.refresh.reveal(),
            refresh_expires_at=_timestamp(exchanged.refresh_expires_at),
        )

    async def RefreshToken(  # noqa: N802
        self, request: messages.RefreshTokenRequest, _context: Context
    ) -> messages.RefreshTokenResponse:
        """The successor of a refresh token, and an access token for the caller's certificate."""
        refreshed = await self.tokens.refresh(
            _applicant(request.credential), request.refresh_token, scopes=tuple(request.scopes)
        )
        return messages.RefreshTokenResponse(
            access_token=refreshed.access.token.reveal(),
            expires_at=_timestamp(refreshed.access.expires_at),
            scopes=refreshed.access.scopes,
            token_id=refreshed.access.token_id,
            refresh_token=refreshed.refresh.reveal(),
            refresh_expires_at=_timestamp(refreshed.expires_at),
        )

    async def RevokeToken(  # noqa: N802
        self, request: messages.RevokeTokenRequest, _context: Context
    ) -> messages.RevokeTokenResponse:
        """Revokes one of the caller's own tokens."""
        await self.tokens.revoke_own(
            _applicant(request.credential), token_id=request.token_id, refresh_token=request.refresh_token
        )
        return messages.RevokeTokenResponse()

    async def IntrospectToken(  # noqa: N802
        self, request: messages.IntrospectTokenRequest, _context: Context
    ) -> messages.IntrospectTokenResponse:
        """Whether a token is live, as far as it concerns the caller."""
        live = await self.tokens.introspect(_applicant(request.credential), request.token)
        if live is None:
            return messages.IntrospectTokenResponse(active=False)
        return messages.IntrospectTokenResponse(
            active=True,
            scopes=live.scopes,
            client_id=live.client_id,
            subject=live.subject,
            tenant=live.tenant,
            audience=live.audience,
            issued_at=_timestamp(live.issued_at),
            expires_at=_timestamp(live.expires_at),
            token_id=live.token_id or "",
            session_id=live.session_id or "",
            certificate_thumbprint=live.certificate_thumbprint or "",
            issuer=self.metadata.issuer,
        )

    async def GetServerMetadata(  # noqa: N802
        self, _request: messages.GetServerMetadataRequest, _context: Context
    ) -> messages.GetServerMetadataResponse:
        """What this token service is and serves."""
        return messages.GetServerMetadataResponse(**self.metadata.described())

    async def GetJsonWebKeySet(  # noqa: N802
        self, _request: messages.GetJsonWebKeySetRequest, _context: Context
    ) -> messages.GetJsonWebKeySetResponse:
        """The keys that verify access tokens."""
        return messages.GetJsonWebKeySetResponse(
            keys=[messages.JsonWebKey(**key) for key in self.metadata.key_set()],
            max_age_seconds=int(self.metadata.max_age.total_seconds()),
        )


def _applicant(shown: messages.ClientCredential) -> Applicant:
    caller = current_caller()
    proof = shown.WhichOneof("proof")
    return Applicant(
        spiffe_id=caller.spiffe_id,
        thumbprint=caller.certificate_thumbprint,
        # Without a token, a caller lasts exactly as long as its certificate.
        not_after=caller.expires_at,
        credential=Credential(
            client_id=shown.client_id,
            assertion=Secret(shown.assertion) if proof == "assertion" else None,
            secret=Secret(shown.secret) if proof == "secret" else None,
        ),
        service=caller.service,
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    # Whole seconds, as they stand in tokens and are kept of families: half of what `FromDatetime` takes.
    return Timestamp(seconds=int(moment.timestamp()), nanos=moment.microsecond * 1000)
