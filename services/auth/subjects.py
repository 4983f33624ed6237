"""Whom a client asks to speak for: subject tokens, ours and those of external issuers."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from casemate.clock import Clock
from casemate.errors import PermissionDenied, Reason, Unauthenticated
from casemate.gate.core.trust import TrustSnapshot
from casemate.gate.core.verifier import TokenVerifier
from services.auth.credential_records import OUR_OWN
from services.auth.foreign_tokens import ForeignToken, instant, parse_foreign, verify_foreign
from services.auth.records import Client
from services.auth.refresh_tokens import invalid_grant
from services.auth.store.credentials import CredentialStore

MAX_SUBJECT_TOKEN_LIFETIME: Final = timedelta(hours=1)
"""Of an external issuer's token; revocations of subjects are kept that long."""
_SKEW: Final = timedelta(seconds=5)
_REASON: Final = Reason.GRANT_INVALID
_URL: Final = re.compile(r"[\x21-\x7e]{1,512}")
_SUBJECT: Final = re.compile(r"[\x21-\x7e]{1,180}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom a verified subject token is about.

    Attributes:
        name: becomes `sub`; `<issuer>:<sub>` for one of an external issuer.
        source: which exchange grants are about it.
        scopes: the most that it can pass on; None: only the exchange grant limits it.
        actors: who spoke for it so far, the last one first.
        session_id: what its tokens die with; None: nothing yet.
        expires_at: when the subject token ends.
        said_at: when the subject token was issued; never after it was verified.
        parents: our tokens that were exchanged to come here, the last one first.
    """

    name: str
    source: str
    scopes: frozenset[str] | None
    actors: tuple[str, ...]
    session_id: str | None
    expires_at: datetime
    said_at: datetime
    parents: tuple[str, ...] = ()


class Subjects:
    """Verifies subject tokens.

    Args:
        store: external issuers.
        trust: the present trust, for our keys and revocations.
        issuer: the `iss` of our own tokens.
        clock: says when now is.
    """

    def __init__(
        self, *, store: CredentialStore, trust: Callable[[], TrustSnapshot], issuer: str, clock: Clock
    ) -> None:
        self._store = store
        self._trust = trust
        self._issuer = issuer
        self._clock = clock

    def verify_ours(self, text: str, *, client: Client) -> Subject:
        """The subject of an access token that we issued for this very client as its audience.

        Raises:
            Unauthenticated: `GRANT_INVALID`.
            PermissionDenied: the client's own token: it would only get itself a longer one.
        """
        trust, now = self._trust(), self._clock.now()
        verifier = TokenVerifier(issuer=self._issuer, audience=client.client_id)
        try:
            token = verifier.verify(text, keys=trust.keys, now=now)
            trust.revocations.check_token(token, now)
        except Unauthenticated as error:
            raise invalid_grant(f"subject token: {error}") from None
        if token.tenant != client.tenant:
            raise invalid_grant("a subject of another tenant")
        if token.client_id == client.client_id:
            raise PermissionDenied("a client's own token", reason=Reason.SCOPE_NOT_GRANTED)
        return Subject(
            name=token.subject,
            source=OUR_OWN,
            scopes=token.scopes,
            actors=token.actors,
            parents=(token.token_id, *token.parents),
            session_id=token.session_id or token.token_id,
            expires_at=token.expires_at,
            said_at=min(token.issued_at, now),
        )

    async def verify_external(self, text: str, *, client: Client, thumbprint: str) -> Subject:
        """The subject of a token of an external issuer that the client's tenant registered.

        Raises:
            Unauthenticated: `GRANT_INVALID`.
        """
        token = parse_foreign(text, reason=_REASON)
        url = token.claims.get("iss")
        named = isinstance(url, str) and _URL.fullmatch(url) is not None
        issuer = await self._store.issuer_of(client.tenant, str(url) if named else "")
        keys = {} if issuer is None else dict(parse_pinned_key(key) for key in issuer.keys)
        verify_foreign(token, keys, reason=_REASON)
        if issuer is None:
            raise invalid_grant("an issuer that is not registered")
        audience = token.claims.get("aud")
        if issuer.audience not in (audience if isinstance(audience, list) else [audience]):
            raise invalid_grant("a subject token for somebody else")
        issued_at, expires_at = self._check_times(token)
        _check_use(token.claims, client=client, thumbprint=thumbprint)
        subject = token.claims.get("sub")
        if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:
            raise invalid_grant("a subject without a name")
        name = f"{issuer.name}:{subject}"
        try:
            self._trust().revocations.check_subject(name, issued_at, self._clock.now())
        except Unauthenticated:
            raise invalid_grant("a subject that is revoked") from None
        return Subject(
            name=name,
            source=issuer.name,
            scopes=None,
            actors=(),
            session_id=None,
            expires_at=expires_at,
            said_at=issued_at,
        )

    def _check_times(self, token: ForeignToken) -> tuple[datetime, datetime]:
        now = self._clock.now()
        issued_at = instant(token.claims, "iat", reason=_REASON)
        expires_at = instant(token.claims, "exp", reason=_REASON)
        not_before = instant(token.claims, "nbf", reason=_REASON) if "nbf" in token.claims else issued_at
        if now >= expires_at or max(issued_at, not_before) > now + _SKEW:
            raise invalid_grant("a subject token outside of its time")
        if expires_at - issued_at > MAX_SUBJECT_TOKEN_LIFETIME:
            raise invalid_grant("a subject token that lives too long")
        # Their clock may run ahead: what is heard now was said by now, and a revocation of now has to reach it.
        return min(issued_at, now), expires_at


def encode_key(key_id: str, der: bytes) -> str:
    """How a pinned key of an external issuer is kept."""
    return f"{key_id} {base64.urlsafe_b64encode(der).decode()}"


def parse_pinned_key(text: str) -> tuple[str, bytes]:
    """The `kid` and the DER of a key that was kept so."""
    key_id, _, der = text.partition(" ")
    return key_id, base64.urlsafe_b64decode(der)


def _check_use(claims: Mapping[str, Any], *, client: Client, thumbprint: str) -> None:
    """What the issuer itself says of who may use the token (RFC 8693 section 4.4, RFC 8705 section 3.1)."""
    if "may_act" in claims and claims["may_act"] != {"sub": client.client_id}:
        raise invalid_grant("another may act for the subject")
    if "cnf" in claims and claims["cnf"] != {"x5t#S256": thumbprint}:
        raise invalid_grant("the subject token is bound to somebody else")
    if "act" in claims:
        raise invalid_grant("an actor whom nobody here knows")
