"""Refresh families: one row each, rotated by compare-and-swap, ended by reuse.

Whoever presents the current token gets its successor. A retry soon after, while the
successor is unused, gets that same successor, so a lost answer costs nothing.
Any other use of an older token, or of any token from a certificate of another
SPIFFE ID, means that two hold what one should: the family ends and so do its
live access tokens. Source: RFC 9700 section 4.14.2.

If this fails: a stolen refresh token works until the family's absolute limit, for
a thief who also holds a certificate of the very SPIFFE ID.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from casemate.clock import Clock
from casemate.errors import Conflict, PermissionDenied, Reason, StoredDataUnreadable, Unauthenticated
from casemate.secret import Secret
from services.auth.records import Client, Family
from services.auth.refresh_tokens import (
    PresentedToken,
    RefreshTokens,
    invalid_grant,
    new_family_id,
    new_salt,
    parse_refresh_token,
)
from services.auth.scopes import Audiences
from services.auth.store.families import FamilyStore
from services.auth.token_issuer import Entitlement, IssuedToken, TokenIssuer, grantable

_ATTEMPTS: Final = 100
"""Swaps that others may win before we give up; each of them is a whole refresh of the same family."""

_log = logging.getLogger(__name__)


class RefreshOutcome(StrEnum):
    """What became of a presented refresh token; the label of a counter."""

    ROTATED = "rotated"
    RETRIED = "retried"
    REUSED = "reused"
    FOREIGN = "foreign"
    ENDED = "ended"
    FORGED = "forged"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyLimits:
    """How long a family lasts.

    Attributes:
        idle: without a refresh.
        absolute: at all; no refresh extends it.
        retry: after a rotation, for the same successor again.
    """

    idle: timedelta = timedelta(hours=8)
    absolute: timedelta = timedelta(hours=24)
    retry: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """A fresh access token and the refresh token that is current from now on."""

    access: IssuedToken
    refresh: Secret[str]
    expires_at: datetime


class Families:
    """Begins, rotates and ends refresh families.

    Args:
        store: their rows.
        tokens: derives and verifies the texts.
        issuer: issues the access tokens.
        clock: says when now is.
        limits: how long a family lasts.
        allowed: the scopes that an operator still lets a client have for a family's subject.
        observe: told the outcome of every presented token.
    """

    def __init__(
        self,
        *,
        store: FamilyStore,
        tokens: RefreshTokens,
        issuer: TokenIssuer,
        clock: Clock,
        allowed: Callable[[Client, Family], Awaitable[frozenset[str]]],
        limits: FamilyLimits | None = None,
        observe: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._issuer = issuer
        self._clock = clock
        self._limits = limits or FamilyLimits()
        self._allowed = allowed
        self._observe = observe

    async def begin(
        self, entitlement: Entitlement, *, spiffe_id: str, said_at: datetime | None = None
    ) -> tuple[Family, Secret[str]]:
        """A new family, bound to this SPIFFE ID, and its first token. One insert, and a look at revocations.

        `entitlement.session_id` becomes the family's identifier; `said_at` is when the subject token was issued.

        Raises:
            Unauthenticated: `GRANT_INVALID`: subject, client or SPIFFE ID were revoked meanwhile.
        """
        now = self._clock.now()
        ends = now + self._limits.absolute
        family = Family(
            id=entitlement.session_id or new_family_id(),
            tenant=entitlement.tenant,
            client_id=entitlement.client_id,
            spiffe_id=spiffe_id,
            subject=entitlement.subject,
            actors=entitlement.actors,
            audience=entitlement.audience,
            scopes=entitlement.scopes,
            salt=new_salt(),
            generation=1,
            created_at=now,
            rotated_at=now,
            idle_expires_at=min(now + self._limits.idle, ends),
            expires_at=ends,
        )
        try:
            await self._store.add(family, said_at=said_at or now)
        except Unauthenticated:
            raise invalid_grant("revoked while the family began") from None
        return family, self._tokens.current(family)

    async def refresh(
        self,
        text: str,
        *,
        client: Client | None,
        spiffe_id: str,
        thumbprint: str,
        not_after: datetime,
        scopes: Sequence[str] = (),
    ) -> Refreshed:
        """The successor of a refresh token, and an access token for the present certificate.

        Three reads and one update; the update is one statement.

        Args:
            text: the refresh token.
            client: whom the certificate names, if it is enabled.
            spiffe_id: the certificate's.
            thumbprint: the certificate's.
            not_after: when the certificate ends.
            scopes: fewer than the family's; empty for all of them. The family keeps its own.

        Raises:
            Unauthenticated: `GRANT_INVALID`.
            PermissionDenied: `SCOPE_NOT_GRANTED`: wider than the family, or than the client is now.
            Conflict: a hundred others were faster.
        """
        presented = parse_refresh_token(text)
        for _ in range(_ATTEMPTS):
            family, generation = await self._verified(presented)
            outcome = judge(family, generation, spiffe_id=spiffe_id, now=self._clock.now(), retry=self._limits.retry)
            if outcome in (RefreshOutcome.REUSED, RefreshOutcome.FOREIGN):
                await self._end_stolen(family, generation, outcome, spiffe_id)
            elif client is None:
                outcome = RefreshOutcome.ENDED
            if outcome not in (RefreshOutcome.ROTATED, RefreshOutcome.RETRIED) or client is None:
                self._observe(outcome)
                raise invalid_grant(f"family {family.id}: {outcome.value}")
            entitlement = _entitlement(
                family, client, scopes, allowed=await self._allowed(client, family), audiences=self._issuer.audiences
            )
            # First: a key that cannot sign now, in a KMS for one, must not use the token up.
            access = await self._issuer.mint(entitlement, thumbprint=thumbprint, not_after=not_after)
            if outcome is RefreshOutcome.ROTATED:
                successor = self._rotated(family)
                if not await self._store.swap(family, successor):
                    continue  # another was faster: judge again by what it left
                family = successor
            self._observe(outcome)
            return Refreshed(access=access, refresh=self._tokens.current(family), expires_at=family.idle_expires_at)
        raise Conflict(f"family {presented.unverified_family_id} never stood still")

    async def end_own(self, text: str, *, client: Client) -> None:
        """Ends the family of one of the client's own tokens, current or old; others have no effect.

        Source: RFC 7009 section 2.1, 2.2.

        Raises:
            Unauthenticated: `GRANT_INVALID`: not a token that was derived here.
        """
        family, _ = await self._verified(parse_refresh_token(text))
        if family.client_id == client.client_id:
            await self._store.end(family.id, now=self._clock.now())

    async def current(self, text: str) -> Family:
        """The family of which this is the current, usable token; for introspection.

        Raises:
            Unauthenticated: `GRANT_INVALID`.
        """
        family, generation = await self._verified(parse_refresh_token(text))
        now = self._clock.now()
        spiffe_id, retry = family.spiffe_id, self._limits.retry
        if judge(family, generation, spiffe_id=spiffe_id, now=now, retry=retry) is not RefreshOutcome.ROTATED:
            raise invalid_grant("not the current token of its family")
        return family

    async def _verified(self, presented: PresentedToken) -> tuple[Family, int]:
        try:
            family = await self._store.get(presented.unverified_family_id)
        except StoredDataUnreadable:
            family = None  # the alarm was sounded where it was found; the caller learns nothing
        try:
            generation = self._tokens.verify(presented, family)
        except Exception:
            self._observe(RefreshOutcome.FORGED)
            raise
        if family is None:
            raise invalid_grant("no such family")
        return family, generation

    def _rotated(self, family: Family) -> Family:
        now = self._clock.now()
        return replace(
            family,
            generation=family.generation + 1,
            rotated_at=now,
            idle_expires_at=min(now + self._limits.idle, family.expires_at),
        )

    async def _end_stolen(self, family: Family, generation: int, outcome: RefreshOutcome, spiffe_id: str) -> None:
        await self._store.end(family.id, now=self._clock.now())
        _log.critical(
            "refresh token %s: family=%s client=%s generation=%d of %d, presented by %s, bound to %s; the family ends",
            outcome.value,
            family.id,
            family.client_id,
            generation,
            family.generation,
            spiffe_id,
            family.spiffe_id,
        )


def judge(family: Family, generation: int, *, spiffe_id: str, now: datetime, retry: timedelta) -> RefreshOutcome:
    """What a genuine token of a family, of this generation, is worth. Pure.

    A successor is unused as long as the family stands at it: its use moves the family on.
    """
    if family.ended_at is not None or now >= family.idle_expires_at or now >= family.expires_at:
        return RefreshOutcome.ENDED
    if spiffe_id != family.spiffe_id:
        return RefreshOutcome.FOREIGN
    if generation == family.generation:
        return RefreshOutcome.ROTATED
    if generation == family.generation - 1 and now - family.rotated_at <= retry:
        return RefreshOutcome.RETRIED
    # Older; or newer than the row, which is then one that was put back as it once was.
    return RefreshOutcome.REUSED


def _entitlement(
    family: Family, client: Client, scopes: Sequence[str], *, allowed: frozenset[str], audiences: Audiences
) -> Entitlement:
    if family.client_id != client.client_id:
        raise invalid_grant("the certificate's client is not the family's")
    if not frozenset(scopes or family.scopes) <= allowed & frozenset(family.scopes):
        raise PermissionDenied("wider than the family", reason=Reason.SCOPE_NOT_GRANTED)
    granted = grantable(client, family.audience, tuple(scopes) or family.scopes, audiences=audiences)
    return Entitlement(
        tenant=family.tenant,
        client_id=family.client_id,
        subject=family.subject,
        audience=family.audience,
        scopes=granted,
        actors=family.actors,
        session_id=family.id,
    )
