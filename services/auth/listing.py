"""What operators see of the authority, page by page; reach is as in `administration`.

If this fails: an administrator of one tenant reads names and times of another's. No
record that is listed holds a secret.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from casemate.clock import Clock
from casemate.errors import NotFound
from casemate.gate.core.records import Grant, Release, Revocation
from casemate.signing.signers import Signer
from services.auth.administration import reach_of, require_reach
from services.auth.credential_records import ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
from services.auth.records import Client, Tenant
from services.auth.store.listing import Key, ListingStore
from services.auth.store.table import Page
from services.auth.validation import FieldChecks

T = TypeVar("T")

DEFAULT_PAGE: Final = 100
LARGEST_PAGE: Final = 500
_LONGEST_TOKEN: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which page of which tenant's is asked for.

    Attributes:
        tenant: whose; empty for all within reach.
        size: how many at most; 0 for a hundred.
        token: what the page before ended with; empty for the first.
    """

    tenant: str = ""
    size: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Page[T]):
    """A page, and the text that asks for the next one."""

    @property
    def token(self) -> str:
        """Empty if this was the last page."""
        return "" if self.after is None else _encode(self.after)


class Listing:
    """Reads what is within the reach of an administrator.

    Args:
        store: pages of rows.
        clock: for grants and revocations that ended.
    """

    def __init__(self, *, store: ListingStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def tenants(self, admin: str, place: Place) -> Listed[Tenant]:
        """All tenants for the house; for another administrator its own alone."""
        after, limit = _position(place, parts=1)
        if reach_of(admin) is None:
            return _listed(await self._store.tenants(after=after, limit=limit))
        own = await self._store.tenant(admin)
        return Listed(records=() if own is None or after is not None else (own,), after=None)

    async def clients(self, admin: str, place: Place) -> Listed[Client]:
        """Clients, disabled ones too. Raises NotFound: outside of reach."""
        return await self._page(self._store.clients, admin, place)

    async def client(self, admin: str, client_id: str) -> Client:
        """One client. Raises NotFound."""
        checks = FieldChecks()
        checks.identifier("client_id", client_id)
        checks.raise_if_any()
        client = await self._store.client(client_id)
        if client is None or reach_of(admin) not in (None, client.tenant):
            raise NotFound(f"client {client_id}")
        return client

    async def grants(self, admin: str, place: Place) -> Listed[Grant]:
        """Live grants on resources of tenants. Raises NotFound: outside of reach."""
        page = await self._page(self._store.grants, admin, place)
        now = self._clock.now()
        live = tuple(grant for grant in page.records if grant.expires_at is None or grant.expires_at > now)
        return Listed(records=live, after=page.after)

    async def revocations(self, admin: str, place: Place) -> Listed[Revocation]:
        """What is revoked and could matter; of one tenant, what names it. Raises NotFound: outside of reach."""
        page = await self._page(self._store.revocations, admin, place)
        now = self._clock.now()
        live = tuple(one for one in page.records if one.expires_at is None or one.expires_at > now)
        return Listed(records=live, after=page.after)

    async def signers(self, admin: str, place: Place) -> Listed[Signer]:
        """Signers, revoked ones too. Raises NotFound: outside of reach."""
        return await self._page(self._store.signers, admin, place)

    async def issuers(self, admin: str, place: Place) -> Listed[ExternalIssuer]:
        """External issuers. Raises NotFound: outside of reach."""
        return await self._page(self._store.issuers, admin, place)

    async def exchange_grants(self, admin: str, place: Place) -> Listed[ExchangeGrant]:
        """Exchange grants. Raises NotFound: outside of reach."""
        return await self._page(self._store.exchange_grants, admin, place)

    async def releases(self, admin: str, place: Place) -> Listed[Release]:
        """Releases. Raises NotFound: outside of reach."""
        return await self._page(self._store.releases, admin, place, parts=2)

    async def secrets(self, admin: str, client_id: str) -> list[ClientSecret]:
        """The live secrets of a client. Raises NotFound."""
        return await self._store.secrets_of((await self.client(admin, client_id)).client_id)

    async def keys(self, admin: str, client_id: str) -> list[ClientKey]:
        """The keys of a client. Raises NotFound."""
        return await self._store.keys_of((await self.client(admin, client_id)).client_id)

    async def _page(
        self, read: Callable[..., Awaitable[Page[T]]], admin: str, place: Place, *, parts: int = 1
    ) -> Listed[T]:
        after, limit = _position(place, parts=parts)
        if place.tenant:
            require_reach(admin, place.tenant)
        return _listed(await read(place.tenant or reach_of(admin), after=after, limit=limit))


def _position(place: Place, *, parts: int) -> tuple[Key, int]:
    """After which key, and how many. A token is no secret and no right: it only says where to go on.

    Raises:
        InvalidRequest: the tenant's form, or a token that no page ended with.
    """
    checks = FieldChecks()
    if place.tenant:
        checks.tenant("tenant", place.tenant)
    after = _decode(place.token)
    checks.that("page_token", "is not one of these pages", holds=not place.token or len(after) == parts)
    checks.raise_if_any()
    return after or None, min(place.size or DEFAULT_PAGE, LARGEST_PAGE)


def _listed(page: Page[T]) -> Listed[T]:
    return Listed(records=page.records, after=page.after)


def _encode(key: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode("/".join(key).encode()).decode()


def _decode(token: str) -> tuple[str, ...]:
    """The key in a token; nothing if there is none. No part of a key that is listed by holds a slash."""
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii():
        return ()
    try:
        key = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ()
    # PostgreSQL has no text with a NUL in it.
    return () if "\x00" in key else tuple(key.split("/"))
