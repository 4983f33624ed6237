"""The endpoints of OAuth 2, each an rpc of the token service in another dress; `Tokens` decides."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from json.encoder import encode_basestring_ascii
from types import MappingProxyType
from typing import Any, Final

from casemate.clock import Clock
from casemate.errors import Reason, Unauthenticated
from casemate.gate.adapters.http import HttpCall
from casemate.gate.core.caller import Caller
from casemate.gate.core.jose import parse_token
from casemate.secret import Secret
from casemate.transport.http_messages import Answer
from services.auth.exchange import SubjectTokenKind, Wish
from services.auth.http_errors import NO_STORE, OAuthRefusal, document, json_answer
from services.auth.http_forms import audience_of, credential_of, require, scopes_of
from services.auth.introspection import LiveToken
from services.auth.refresh_tokens import looks_like_refresh_token
from services.auth.server_metadata import GRANT_EXCHANGE, ServerMetadata
from services.auth.token_issuer import IssuedToken
from services.auth.tokens import Applicant, Tokens

RPC: Final = "/casemate.auth.v1.TokenService/"

_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # kinds, not passwords
_REFRESH_TOKEN: Final = "urn:ietf:params:oauth:token-type:refresh_token"  # noqa: S105
_KINDS: Final = MappingProxyType(
    {
        _ACCESS_TOKEN: SubjectTokenKind.ACCESS_TOKEN,
        "urn:ietf:params:oauth:token-type:jwt": SubjectTokenKind.JWT,
    }
)


class TokenEndpoints:
    """Translates forms to calls of the token service, and what it gives to JSON.

    Args:
        tokens: decides.
        metadata: describes.
        trust_domain: of the names of services.
        clock: for `expires_in`.
    """

    def __init__(self, *, tokens: Tokens, metadata: ServerMetadata, trust_domain: str, clock: Clock) -> None:
        self._tokens = tokens
        self._metadata = metadata
        self._trust_domain = trust_domain
        self._clock = clock

    async def token(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        """`/oauth2/token`: RFC 6749 sections 4.4 and 6, RFC 8693 section 2."""
        match require(form, "grant_type"):
            case "client_credentials":
                return await self._issue(call, form)
            case "refresh_token":
                call.narrow(f"{RPC}RefreshToken")
                return await self._refresh(call, form)
            case str() as grant if grant == GRANT_EXCHANGE:
                call.narrow(f"{RPC}ExchangeToken")
                return await self._exchange(call, form)
            case _:
                raise OAuthRefusal("unsupported_grant_type", "a grant that is not served")

    async def revoke(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        """`/oauth2/revoke`: RFC 7009. What is not the client's own has no effect, and nobody learns which it was."""
        applicant, text = _applicant(call, form), require(form, "token")
        # The token's form says what it is; RFC 7009 section 2.1 has servers ignore a hint that they do not know.
        if looks_like_refresh_token(text):
            await self._tokens.revoke_own(applicant, refresh_token=text)
        else:
            await self._tokens.revoke_own(applicant, token_id=_unverified_id(text))
        return Answer(headers={**NO_STORE, "Content-Type": "application/json"})

    async def introspect(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        """`/oauth2/introspect`: RFC 7662."""
        live = await self._tokens.introspect(_applicant(call, form), require(form, "token"))
        said = {"active": False} if live is None else _described(live, issuer=self._metadata.issuer)
        return json_answer(said, headers=dict(NO_STORE))

    async def _issue(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        audience = audience_of(form, trust_domain=self._trust_domain)
        issued = await self._tokens.issue(_applicant(call, form), audience=audience, scopes=scopes_of(form))
        return self._given(issued)

    async def _refresh(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        text = require(form, "refresh_token")
        refreshed = await self._tokens.refresh(_applicant(call, form), text, scopes=scopes_of(form))
        return self._given(refreshed.access, refresh_token=refreshed.refresh.reveal())

    async def _exchange(self, call: HttpCall, form: Mapping[str, str]) -> Answer:
        if "actor_token" in form or "actor_token_type" in form:
            raise OAuthRefusal("invalid_request", "the actor is the client, and no other")
        subject_token, kind = require(form, "subject_token"), _KINDS.get(require(form, "subject_token_type"))
        wanted = form.get("requested_token_type", _ACCESS_TOKEN)
        if kind is None or wanted not in {_ACCESS_TOKEN, _REFRESH_TOKEN}:
            raise OAuthRefusal("invalid_request", "a type of token that is not exchanged")
        wish = Wish(
            subject_token=Secret(subject_token),
            kind=kind,
            audience=audience_of(form, trust_domain=self._trust_domain),
            scopes=scopes_of(form),
            refresh=wanted == _REFRESH_TOKEN,
        )
        try:
            exchanged = await self._tokens.exchange(_applicant(call, form), wish)
        except Unauthenticated as error:
            raise _told_by_exchange(error) from error
        refresh = {} if exchanged.refresh is None else {"refresh_token": exchanged.refresh.reveal()}
        return self._given(exchanged.access, issued_token_type=_ACCESS_TOKEN, **refresh)

    def _given(self, issued: IssuedToken, **more: str) -> Answer:
        left = issued.expires_at - self._clock.now()
        said = {"access_token": issued.token.reveal(), "token_type": "Bearer", "scope": " ".join(issued.scopes), **more}
        # By hand: every token is answered so, and an encoder of objects takes three times as long.
        members = ",".join([f'"{name}":{encode_basestring_ascii(value)}' for name, value in said.items()])
        return document(f'{{{members},"expires_in":{max(0, int(left.total_seconds()))}}}', headers=dict(NO_STORE))


def _applicant(call: HttpCall, form: Mapping[str, str]) -> Applicant:
    caller: Caller = call.caller
    return Applicant(
        spiffe_id=caller.spiffe_id,
        thumbprint=caller.certificate_thumbprint,
        not_after=caller.expires_at,
        credential=credential_of(form, call.request.headers.get("Authorization")),
        service=caller.service,
    )


def _told_by_exchange(error: Unauthenticated) -> Unauthenticated | OAuthRefusal:
    """RFC 8693 section 2.2.2: a subject token that is not accepted is an invalid request."""
    if error.reason is Reason.GRANT_INVALID:
        return OAuthRefusal("invalid_request", "the subject token is not accepted")
    return error


def _unverified_id(text: str) -> str:
    """The identifier that a text says it has; whose it is, `Tokens` proves. Empty if it is no token of ours."""
    with contextlib.suppress(Unauthenticated):
        said = parse_token(text).read_claims().get("jti")
        return said if isinstance(said, str) else ""
    return ""


def _described(live: LiveToken, *, issuer: str) -> dict[str, Any]:
    """RFC 7662 section 2.2, RFC 8705 section 3.2; our own `tenant` and `sid` besides."""
    said = {
        "active": True,
        "iss": issuer,
        "client_id": live.client_id,
        "sub": live.subject,
        "aud": live.audience,
        "scope": " ".join(live.scopes),
        "iat": _seconds(live.issued_at),
        "exp": _seconds(live.expires_at),
        "jti": live.token_id,
        "sid": live.session_id,
        "tenant": live.tenant,
        "token_type": None if live.certificate_thumbprint is None else "Bearer",
        "cnf": None if live.certificate_thumbprint is None else {"x5t#S256": live.certificate_thumbprint},
    }
    return {name: value for name, value in said.items() if value is not None}


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
