"""Pages of the authority, as operators look through it. Reads alone; every row is verified.

`tenant` is the one whose records are meant, or None for all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate.gate.core.caller import spiffe_path
from casemate.gate.core.records import Grant, Release, Revocation, RevocationKind
from casemate.signing.signers import Signer
from casemate.storage.pool import storage_errors
from services.auth.credential_records import ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
from services.auth.records import Client, Tenant
from services.auth.store.table import AuthorityTable, Page, R
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool

Key: TypeAlias = "tuple[str, ...] | None"

_NAMED: Final = frozenset({RevocationKind.CLIENT, RevocationKind.SUBJECT})
"""Revocations by a name that belongs to somebody's tenant."""


class ListingStore:
    """Reads pages; one read of the database each, but for releases: four for each of them."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        with storage_errors():
            async with self._pool.acquire() as connection:
                yield connection

    async def tenants(self, *, after: Key, limit: int) -> Page[Tenant]:
        """Tenants, by name."""
        return await self._page(self._tables.tenants, None, after, limit)

    async def clients(self, tenant: str | None, *, after: Key, limit: int) -> Page[Client]:
        """Clients, by identifier."""
        return await self._page(self._tables.clients, tenant, after, limit)

    async def grants(self, tenant: str | None, *, after: Key, limit: int) -> Page[Grant]:
        """Grants, by identifier, those that ended too."""
        return await self._page(self._tables.grants, tenant, after, limit)

    async def revocations(self, tenant: str | None, *, after: Key, limit: int) -> Page[Revocation]:
        """Revocations, by identifier, those that ended too; of a tenant those that name somebody of it.

        One read more for each client or subject on the page that a tenant asks for.
        """
        page = await self._page(self._tables.revocations, None, after, limit)
        if tenant is None:
            return page
        whose: dict[str, str | None] = {}
        async with self._reading() as connection:
            for one in page.records:
                if one.kind in _NAMED and one.value not in whose:
                    whose[one.value] = await self._tenant_of(connection, one.value)
        own = [one for one in page.records if tenant == (whose[one.value] if one.kind in _NAMED else _tenant_in(one))]
        return Page(records=tuple(own), after=page.after)

    async def _tenant_of(self, connection: Connection, name: str) -> str | None:
        """Whose a client or a subject is: a client's identifier, or `<issuer>:<sub>` of an external issuer."""
        issuer, external, _ = name.partition(":")
        if external:
            issuers = await self._tables.external_issuers.matching(connection, name=issuer)
            return issuers[0].tenant if issuers else None
        clients = await self._tables.clients.matching(connection, client_id=name)
        return clients[0].tenant if clients else None

    async def signers(self, tenant: str | None, *, after: Key, limit: int) -> Page[Signer]:
        """Signers, by key id."""
        return await self._page(self._tables.signers, tenant, after, limit)

    async def issuers(self, tenant: str | None, *, after: Key, limit: int) -> Page[ExternalIssuer]:
        """External issuers, by name."""
        return await self._page(self._tables.external_issuers, tenant, after, limit)

    async def exchange_grants(self, tenant: str | None, *, after: Key, limit: int) -> Page[ExchangeGrant]:
        """Exchange grants, by identifier."""
        return await self._page(self._tables.exchange_grants, tenant, after, limit)

    async def releases(self, tenant: str | None, *, after: Key, limit: int) -> Page[Release]:
        """Releases, by tenant and model."""
        heads = await self._page(self._tables.releases, tenant, after, limit)
        async with self._reading() as connection:
            found = [await self._tables.release(connection, head.tenant, head.model) for head in heads.records]
        return Page(records=tuple(release for release in found if release is not None), after=heads.after)

    async def tenant(self, name: str) -> Tenant | None:
        """The tenant with this name, if its row verifies."""
        async with self._reading() as connection:
            found = await self._tables.tenants.matching(connection, name=name)
        return found[0] if found else None

    async def client(self, client_id: str) -> Client | None:
        """The client with this identifier, if its row verifies."""
        async with self._reading() as connection:
            found = await self._tables.clients.matching(connection, client_id=client_id)
        return found[0] if found else None

    async def secrets_of(self, client_id: str) -> list[ClientSecret]:
        """The live secrets of a client."""
        async with self._reading() as connection:
            return await self._tables.client_secrets.matching(connection, client_id=client_id)

    async def keys_of(self, client_id: str) -> list[ClientKey]:
        """The keys of a client."""
        async with self._reading() as connection:
            return await self._tables.client_keys.matching(connection, client_id=client_id)

    async def _page(self, table: AuthorityTable[R], tenant: str | None, after: Key, limit: int) -> Page[R]:
        equal = {} if tenant is None else {"tenant": tenant}
        async with self._reading() as connection:
            return await table.page(connection, after=after, limit=limit, **equal)


def _tenant_in(revocation: Revocation) -> str | None:
    """The tenant that a SPIFFE ID says; None for what says none."""
    if revocation.kind is not RevocationKind.SPIFFE_ID:
        return None
    kind, _, rest = spiffe_path(revocation.value).partition("/")
    tenant, inside, _ = rest.partition("/")
    return tenant if kind == "t" and inside else None
