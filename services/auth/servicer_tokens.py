"""TokenService on the wire."""

from __future__ import annotations

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
        expires_at = Timestamp()
        expires_at.FromDatetime(issued.expires_at)
        return messages.IssueTokenResponse(
            access_token=issued.token.reveal(),
            expires_at=expires_at,
            scopes=issued.scopes,
            token_id=issued.token_id,
        )

    async def RevokeToken(  # noqa: N802
        self, request: messages.RevokeTokenRequest, _context: Context
    ) -> messages.RevokeTokenResponse:
        """Revokes one of the caller's own tokens."""
        await self._tokens.revoke_own(spiffe_id=current_caller().spiffe_id, token_id=request.token_id)
        return messages.RevokeTokenResponse()
