"""TokenService on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from casemate.auth.v1 import token_service_pb2 as messages
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceServicer
from casemate.gate.adapters.caller_context import current_caller
from services.auth.tokens import Tokens

Context = grpc.aio.ServicerContext[Any, Any]


class TokenServicer(TokenServiceServicer):
    """Translates; `Tokens` decides."""

    def __init__(self, *, tokens: Tokens) -> None:
        self._tokens = tokens

    async def IssueToken(  # noqa: N802  # the protocol's name
        self, request: messages.IssueTokenRequest, _context: Context
    ) -> messages.IssueTokenResponse:
        """A token for the caller's certificate."""
        caller = current_caller()
        issued = await self._tokens.issue(
            spiffe_id=caller.spiffe_id,
            thumbprint=caller.certificate_thumbprint,
            # Without a token, a caller lasts exactly as long as its certificate.
            not_after=caller.expires_at,
            audience=request.audience,
            scopes=tuple(request.scopes),
        )
        return messages.IssueTokenResponse(
            access_token=issued.token.reveal(),
            expires_at=_timestamp(issued.expires_at),
            scopes=issued.scopes,
            token_id=issued.token_id,
        )

    async def RefreshToken(  # noqa: N802
        self, request: messages.RefreshTokenRequest, _context: Context
    ) -> messages.RefreshTokenResponse:
        """The successor of a refresh token, and an access token for the caller's certificate."""
        caller = current_caller()
        refreshed = await self._tokens.refresh(
            request.refresh_token,
            spiffe_id=caller.spiffe_id,
            thumbprint=caller.certificate_thumbprint,
            not_after=caller.expires_at,
            scopes=tuple(request.scopes),
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
        spiffe_id = current_caller().spiffe_id
        if request.refresh_token:
            await self._tokens.revoke_own_family(spiffe_id=spiffe_id, refresh_token=request.refresh_token)
        if request.token_id or not request.refresh_token:
            await self._tokens.revoke_own(spiffe_id=spiffe_id, token_id=request.token_id)
        return messages.RevokeTokenResponse()


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
