"""Access tokens: RFC 9068 claims, bound to a certificate by RFC 8705, dead in five minutes."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, Final

from casemate.clock import Clock
from casemate.errors import (
    FieldViolation,
    InvalidRequest,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from casemate.gate.core.jose import TOKEN_TYPE
from casemate.sealing.authority_rows import AuthorityKey
from casemate.secret import Secret
from services.auth.records import Client
from services.auth.scopes import OURS, Audiences
from services.auth.token_keys import SigningTokenKey

MAX_LIFETIME: Final = timedelta(minutes=5)
"""No access token lives longer; every revocation of tokens may be forgotten after it."""

_KEPT: Final = 4_096
"""Beginnings of tokens, and of identifiers, that are kept; all are dropped when there are more."""
_NONCE_BYTES: Final = 16
_NONCES_AT_ONCE: Final = 256
_PROOF_BYTES: Final = 16
_MAX_LENGTH: Final = 64
# Made once: `json.dumps` makes an encoder on every call that names separators.
_compact: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A token and what its holder needs to know of it."""

    token: Secret[str]
    token_id: str
    expires_at: datetime
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """What a token says, once it is decided that it may.

    Attributes:
        tenant: of client and subject.
        client_id: who asks, and whose certificate it is bound to.
        subject: whom it is about; the client itself, unless one speaks for another.
        audience: the one service that it is for.
        scopes: what it carries, sorted.
        actors: who speaks for the subject, the last one first; empty if it speaks for itself.
        parents: identifiers of the tokens that they exchanged, the last one first: it dies with each.
        session_id: the session that it dies with, if it has one.
        not_after: no later than this, if there is such a limit.
    """

    tenant: str
    client_id: str
    subject: str
    audience: str
    scopes: tuple[str, ...]
    actors: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    session_id: str | None = None
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is the same in each token that a client asks for in the same words, by one certificate.

    Attributes:
        client: as it was when this was spelled; another record of it begins another one.
        entitlement: what the tokens say.
        claims: that, as JSON without its end.
    """

    client: Client
    entitlement: Entitlement
    claims: str


class TokenIdentifiers:
    """Makes `jti` values that carry a proof of whose token they name.

    So a client can revoke its own token by its identifier although no issued
    token is stored anywhere: half of the identifier is random, the other half a
    MAC over the random half and the client.
    """

    def __init__(self, *, key: AuthorityKey) -> None:
        self._key = key
        self._nonces: list[bytes] = []
        self._proofs: dict[str, Callable[[bytes], bytes]] = {}

    def make(self, client_id: str) -> str:
        """A new identifier, never seen before."""
        if not self._nonces:
            # Asking the kernel lets another thread go first, so it is asked for many at once. They are no secret:
            # each token shows its own.
            drawn = secrets.token_bytes(_NONCE_BYTES * _NONCES_AT_ONCE)
            self._nonces = [drawn[at : at + _NONCE_BYTES] for at in range(0, len(drawn), _NONCE_BYTES)]
        nonce = self._nonces.pop()
        return base64.urlsafe_b64encode(nonce + self._proof(nonce, client_id)).rstrip(b"=").decode()

    def verify(self, token_id: str, client_id: str) -> str:
        """Return the identifier if it was made for this client.

        Raises:
            PermissionDenied: it was not, or is not one of ours at all.
        """
        if len(token_id) > _MAX_LENGTH:
            raise PermissionDenied("token identifier too long", reason=Reason.CALLER_NOT_ALLOWED)
        try:
            raw = base64.urlsafe_b64decode(token_id.encode("ascii") + b"=" * (-len(token_id) % 4))
        except ValueError:
            raw = b""
        nonce = raw[:_NONCE_BYTES]
        expected = base64.urlsafe_b64encode(nonce + self._proof(nonce, client_id)).rstrip(b"=")
        # Compared in its one canonical spelling, which is the one that the token carries.
        if secrets.compare_digest(token_id.encode(), expected):
            return token_id
        raise PermissionDenied("token identifier of another client", reason=Reason.CALLER_NOT_ALLOWED)

    def _proof(self, nonce: bytes, client_id: str) -> bytes:
        if len(nonce) != _NONCE_BYTES:  # shorter ones are shown, and never made
            return self._key.mac("token_identifier", client_id, {"nonce": nonce})[:_PROOF_BYTES]
        proof = self._proofs.get(client_id)
        if proof is None:
            if len(self._proofs) >= _KEPT:
                self._proofs.clear()
            proof = self._key.begin_mac("token_identifier", client_id, "nonce", length=_NONCE_BYTES)
            self._proofs[client_id] = proof
        return proof(nonce)[:_PROOF_BYTES]


class TokenIssuer:
    """Issues tokens to clients; one signature each.

    Args:
        issuer: the `iss` of every token.
        signing_key: gives the active key at the moment of the call.
        identifiers: makes the `jti`.
        clock: says when now is.
        audiences: that tokens may be for.
    """

    def __init__(
        self,
        *,
        issuer: str,
        signing_key: Callable[[], SigningTokenKey],
        identifiers: TokenIdentifiers,
        clock: Clock,
        audiences: Audiences = OURS,
    ) -> None:
        self.audiences = audiences
        self._issuer = issuer
        self._signing_key = signing_key
        self._identifiers = identifiers
        self._clock = clock
        self._header = ("", "")
        self._begun: dict[tuple[str, str, str, tuple[str, ...]], _Begun] = {}

    async def issue(
        self, client: Client, *, audience: str, scopes: Sequence[str], thumbprint: str, not_after: datetime
    ) -> IssuedToken:
        """A token for one audience, bound to the certificate with this thumbprint, dead with it.

        Args:
            client: an enabled client, proven by that certificate.
            audience: the one service that the token is for.
            scopes: what is asked for; empty asks for all that the client has there.
            thumbprint: base64url SHA-256 of the leaf (`cnf.x5t#S256`, RFC 8705 section 3.1).
            not_after: when the leaf ends.

        Raises:
            InvalidRequest: there is no such audience.
            PermissionDenied: `SCOPE_NOT_GRANTED`: the client may not have the audience, a scope, or any scope there.
            Unauthenticated: the certificate has less than a second to live.
        """
        asked = (client.client_id, thumbprint, audience, tuple(scopes))
        begun = self._begun.get(asked)
        if begun is None or begun.client is not client:
            begun = self._begin(client, audience, scopes, thumbprint)
            if len(self._begun) >= _KEPT:
                self._begun.clear()
            if len(scopes) <= len(client.scopes):  # whoever names one again and again fills nothing
                self._begun[asked] = begun
        return await self._sign(begun.entitlement, begun.claims, not_after=not_after)

    async def mint(self, entitlement: Entitlement, *, thumbprint: str, not_after: datetime) -> IssuedToken:
        """A token that says what was decided, bound to a certificate and dead with it. One signature.

        Raises:
            Unauthenticated: the certificate, or what the token rests on, has less than a second to live.
            Unavailable: no key signs now, or the one that does cannot be reached.
        """
        return await self._sign(entitlement, self._claims(entitlement, thumbprint), not_after=not_after)

    def _begin(self, client: Client, audience: str, scopes: Sequence[str], thumbprint: str) -> _Begun:
        granted = grantable(client, audience, scopes, audiences=self.audiences)
        # RFC 9068 section 2.2: without a resource owner, the subject is the client itself.
        entitlement = Entitlement(
            tenant=client.tenant,
            client_id=client.client_id,
            subject=client.client_id,
            audience=audience,
            scopes=granted,
        )
        return _Begun(client, entitlement, self._claims(entitlement, thumbprint))

    def _claims(self, entitlement: Entitlement, thumbprint: str) -> str:
        """The claims that are known before a token is made, as JSON without its end."""
        return _compact(_claims(entitlement, thumbprint) | {"iss": self._issuer})[:-1]

    async def _sign(self, entitlement: Entitlement, claims: str, *, not_after: datetime) -> IssuedToken:
        now = self._clock.now()
        issued_at = int(now.timestamp())
        ends = min(now + MAX_LIFETIME, not_after, entitlement.not_after or not_after)
        expires_at = min(int(ends.timestamp()), issued_at + int(MAX_LIFETIME.total_seconds()))
        if expires_at <= issued_at:
            raise Unauthenticated("what the token rests on ends within the second", reason=Reason.PEER_REFUSED)
        token_id = self._identifiers.make(entitlement.client_id)
        # Numbers, and an identifier that is base64url: nothing in them has to be escaped.
        payload = f'{claims},"iat":{issued_at},"exp":{expires_at},"jti":"{token_id}"}}'
        key = self._signing_key()
        # What a compact JWS signs (RFC 7515 section 5.1): by hand, since a key in a KMS signs what it is sent.
        signed = f"{self._header_of(key)}.{_base64url(payload.encode())}"
        text = f"{signed}.{_base64url(await key.sign(signed.encode()))}"
        return IssuedToken(
            token=Secret(text),
            token_id=token_id,
            expires_at=datetime.fromtimestamp(expires_at, tz=now.tzinfo),
            scopes=entitlement.scopes,
        )

    def _header_of(self, key: SigningTokenKey) -> str:
        """The encoded header of every token of a key."""
        if self._header[0] != key.kid:
            named = {"alg": key.algorithm, "kid": key.kid, "typ": TOKEN_TYPE}
            self._header = (key.kid, _base64url(_compact(named).encode()))
        return self._header[1]


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _claims(entitlement: Entitlement, thumbprint: str) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "aud": entitlement.audience,
        "sub": entitlement.subject,
        "client_id": entitlement.client_id,
        "tenant": entitlement.tenant,
        "scope": " ".join(entitlement.scopes),
        "cnf": {"x5t#S256": thumbprint},
    }
    if entitlement.session_id is not None:
        claims["sid"] = entitlement.session_id
    act: dict[str, Any] | None = None
    chain = list(zip_longest(entitlement.actors, entitlement.parents[: len(entitlement.actors)]))
    for actor, parent in reversed(chain):  # RFC 8693 section 4.1: the last one is the outermost
        said = {"sub": actor} if parent is None else {"sub": actor, "jti": parent}
        act = said if act is None else {**said, "act": act}
    if act is not None:
        claims["act"] = act
    return claims


def known_scopes(client: Client, audience: str, *, audiences: Audiences) -> frozenset[str]:
    """The scopes that tokens of a client may carry at an audience; none if it may not have the audience.

    An audience is a service, or another client that may speak for this one: such a
    token may pass on any scope of the client, since only an exchange gives it a service.

    Raises:
        InvalidRequest: there is no such audience.
    """
    if audience in audiences:
        mine = audience in client.audiences
        return audiences.scopes_of(audience) & frozenset(client.scopes) if mine else frozenset()
    if audience in client.audiences:
        return frozenset(client.scopes)
    raise InvalidRequest("unknown audience", violations=(FieldViolation("audience", "is not a known audience"),))


def grantable(client: Client, audience: str, scopes: Sequence[str], *, audiences: Audiences) -> tuple[str, ...]:
    """The scopes that a token for this audience carries, sorted; never wider than asked for.

    Raises:
        InvalidRequest: there is no such audience.
        PermissionDenied: `SCOPE_NOT_GRANTED`.
    """
    allowed = known_scopes(client, audience, audiences=audiences)
    if not allowed:
        raise no_target()
    wanted = frozenset(scopes) or allowed
    if not wanted <= allowed:
        raise PermissionDenied("scope or audience not granted", reason=Reason.SCOPE_NOT_GRANTED)
    return tuple(sorted(wanted))


def no_target() -> PermissionDenied:
    """The client may have nothing at the audience: OAuth's `invalid_target` (RFC 8693 section 2.2.2)."""
    violation = FieldViolation("audience", "is not granted")
    return PermissionDenied("audience not granted", reason=Reason.SCOPE_NOT_GRANTED, violations=(violation,))
