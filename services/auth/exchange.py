"""Token exchange (RFC 8693): a client speaks for a subject, as far as an operator allows.

What comes out is never wider than the exchange grant, the client or the subject, and
never lasts longer than the subject token. It is bound to the client's certificate.

If this fails: a client acts for subjects that never came to it; grants still limit
it to what its own SPIFFE ID may do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from typing import Final

from casemate.errors import PermissionDenied, Reason
from casemate.secret import Secret
from services.auth.credential_records import ExchangeGrant
from services.auth.exchange_grants import ExchangeGrants, granted
from services.auth.families import Families
from services.auth.records import Client
from services.auth.refresh_tokens import new_family_id
from services.auth.subjects import Subject, Subjects
from services.auth.token_issuer import Entitlement, IssuedToken, TokenIssuer, known_scopes, no_target

MAX_ACTORS: Final = 3


class SubjectTokenKind(Enum):
    """What is exchanged: `urn:ietf:params:oauth:token-type:access_token` and `…:jwt`."""

    ACCESS_TOKEN = auto()
    JWT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client asks an exchange for.

    Attributes:
        subject_token: whom it wants to speak for.
        kind: where that token is from.
        audience: the one service, or next client, that the result is for.
        scopes: of the result; empty for all that may be.
        refresh: whether a refresh token is wanted too.
    """

    subject_token: Secret[str]
    kind: SubjectTokenKind
    audience: str
    scopes: tuple[str, ...] = ()
    refresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What an exchange gives."""

    access: IssuedToken
    refresh: Secret[str] | None = None
    refresh_expires_at: datetime | None = None


class Exchange:
    """Exchanges subject tokens.

    Args:
        grants: what operators allow.
        subjects: verifies subject tokens.
        families: begins refresh families.
        issuer: issues the result.
    """

    def __init__(
        self,
        *,
        grants: ExchangeGrants,
        subjects: Subjects,
        families: Families,
        issuer: TokenIssuer,
    ) -> None:
        self._grants = grants
        self._subjects = subjects
        self._families = families
        self._issuer = issuer

    async def exchange(self, client: Client, wish: Wish, *, thumbprint: str, not_after: datetime) -> Exchanged:
        """A token about the subject, held by the client.

        Raises:
            Unauthenticated: `GRANT_INVALID`: the subject token.
            InvalidRequest: there is no such audience.
            PermissionDenied: `SCOPE_NOT_GRANTED`: no exchange grant for this, or wider than it, the client or
                the subject; too many actors; no refresh token may come with it.
        """
        text = wish.subject_token.reveal()
        if wish.kind is SubjectTokenKind.ACCESS_TOKEN:
            subject = self._subjects.verify_ours(text, client=client)
        else:
            subject = await self._subjects.verify_external(text, client=client, thumbprint=thumbprint)
        grants = await self._grants.find(client, source=subject.source, audience=wish.audience)
        allowed = known_scopes(client, wish.audience, audiences=self._issuer.audiences) & granted(grants)
        if not allowed:
            raise no_target()
        entitlement = _entitlement(client, subject, wish, grants, allowed=allowed)
        if not wish.refresh:
            access = await self._issuer.mint(entitlement, thumbprint=thumbprint, not_after=not_after)
            return Exchanged(access=access)
        # A subject token of ours is short-lived on purpose: a family would outlive it.
        if subject.scopes is not None or not any(grant.refresh for grant in grants):
            raise _denied("no refresh token may come with it")
        family, refresh = await self._families.begin(entitlement, spiffe_id=client.spiffe_id, said_at=subject.said_at)
        # The family is there; only its first access token ends with the subject token.
        first = replace(entitlement, session_id=family.id)
        access = await self._issuer.mint(first, thumbprint=thumbprint, not_after=not_after)
        return Exchanged(access=access, refresh=refresh, refresh_expires_at=family.idle_expires_at)


def _entitlement(
    client: Client, subject: Subject, wish: Wish, grants: Sequence[ExchangeGrant], *, allowed: frozenset[str]
) -> Entitlement:
    if wish.refresh:
        allowed &= granted([grant for grant in grants if grant.refresh])
    if subject.scopes is not None:
        allowed &= subject.scopes
    wanted = frozenset(wish.scopes) or allowed
    if not wanted or not wanted <= allowed:
        raise _denied("wider than the exchange grant, the client or the subject")
    actors = (client.client_id, *subject.actors)
    if len(actors) > MAX_ACTORS:
        raise _denied("too many actors")
    return Entitlement(
        tenant=client.tenant,
        client_id=client.client_id,
        subject=subject.name,
        audience=wish.audience,
        scopes=tuple(sorted(wanted)),
        actors=actors,
        parents=subject.parents,
        session_id=subject.session_id or new_family_id(),
        not_after=subject.expires_at,
    )


def _denied(detail: str) -> PermissionDenied:
    return PermissionDenied(detail, reason=Reason.SCOPE_NOT_GRANTED)
