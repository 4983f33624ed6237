"""Introspection (RFC 7662): whether a token is live, told to whom it concerns and to nobody else.

A service hears of tokens that are for it; a client, of tokens that are its own or
for it. Everything else is "not active", without a why.

If this fails: a caller learns whose token it found, not how to use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from casemate.clock import Clock
from casemate.errors import Unauthenticated
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.jose import parse_token
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from services.auth.families import Families
from services.auth.refresh_tokens import looks_like_refresh_token


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveToken:
    """What is told of a token that is live. Names as in RFC 7662 section 2.2.

    `certificate_thumbprint` and `token_id` are None for refresh tokens.
    """

    client_id: str
    subject: str
    tenant: str
    audience: str
    scopes: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime
    token_id: str | None
    session_id: str | None
    certificate_thumbprint: str | None


class Introspection:
    """Judges tokens for those whom they concern.

    Args:
        families: for refresh tokens.
        trust: the present trust. A token that was verified less than 60 s ago under the same keys
            is not verified again, as at the gate; its dates and revocations are judged every time.
        issuer: the `iss` of our tokens.
        clock: says when now is.
    """

    def __init__(self, *, families: Families, trust: TrustState, issuer: str, clock: Clock) -> None:
        self._families = families
        self._trust = trust
        self._issuer = issuer
        self._clock = clock
        self._cache = TokenCache()

    async def look(self, text: str, *, audience: str, client_id: str | None) -> LiveToken | None:
        """What a token says, if it is live and concerns whoever asks. At most one verification.

        Args:
            text: the token.
            audience: of tokens that are for whoever asks.
            client_id: whose own tokens may be asked about; None for a service.

        Raises:
            Unavailable: it cannot be told now.
        """
        if looks_like_refresh_token(text):
            return None if client_id is None else await self._refresh_token(text, client_id)
        # The epoch before the keys, as at the gate: see there.
        key_epoch = self._trust.key_epoch
        now, trust = self._clock.now(), self._trust.current
        try:
            said = parse_token(text).read_claims().get("aud")
            named = said if isinstance(said, str) else ""
            token = self._cache.verified(
                text,
                now=now,
                monotonic=self._clock.monotonic(),
                key_epoch=key_epoch,
                verify=lambda: TokenVerifier(issuer=self._issuer, audience=named).verify(
                    text, keys=trust.keys, now=now
                ),
            )
            trust.revocations.check_token(token, now)
        except Unauthenticated:
            return None
        if named != audience and token.client_id != client_id:
            return None
        return LiveToken(
            client_id=token.client_id,
            subject=token.subject,
            tenant=token.tenant,
            audience=named,
            scopes=tuple(sorted(token.scopes)),
            issued_at=token.issued_at,
            expires_at=token.expires_at,
            token_id=token.token_id,
            session_id=token.session_id,
            certificate_thumbprint=token.certificate_thumbprint,
        )

    async def _refresh_token(self, text: str, client_id: str) -> LiveToken | None:
        try:
            family = await self._families.current(text)
        except Unauthenticated:
            return None
        if family.client_id != client_id:
            return None
        return LiveToken(
            client_id=family.client_id,
            subject=family.subject,
            tenant=family.tenant,
            audience=family.audience,
            scopes=family.scopes,
            issued_at=family.created_at,
            expires_at=family.idle_expires_at,
            token_id=None,
            session_id=family.id,
            certificate_thumbprint=None,
        )
