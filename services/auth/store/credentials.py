"""Credentials, external issuers and exchange grants in the database.

`within` is the tenant that whoever asks may act on, or None for all of them, as in
`authority`. No watcher of the trust feed is told of these: only this service asks for
them, and it reads them when it does. Their changes have numbers all the same, by which
the transparency log is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

from casemate.errors import AlreadyExists, NotFound
from casemate.gate.core.records import Revocation
from casemate.storage.pool import storage_errors
from services.auth.credential_records import ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
from services.auth.records import Client
from services.auth.store.changes import Change, EventKind, begin_change
from services.auth.store.families import end_families_of_issuer
from services.auth.store.revoking import add_revocation
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool

MAX_SECRETS: Final = 2
"""Alive at once: the one in use and the one that it is replaced by."""
_MAX_KEYS: Final = 8


class CredentialStore:
    """Reads and changes how clients prove themselves, and for whom they may speak.

    What is read of a client costs the same whether or not there is one.
    """

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        with storage_errors():
            async with self._pool.acquire() as connection:
                yield connection

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Change]:
        async with self._reading() as connection, begin_change(connection) as change:
            yield change

    async def client_by_certificate(self, spiffe_id: str) -> Client | None:
        """The client whose certificate alone proves it. One read."""
        async with self._reading() as connection:
            found = await self._tables.clients.matching(
                connection, as_many_as=1, spiffe_id=spiffe_id, authentication="certificate"
            )
        return found[0] if found else None

    async def client(self, client_id: str) -> Client | None:
        """The client with this identifier, if its row verifies. One read."""
        async with self._reading() as connection:
            found = await self._tables.clients.matching(connection, as_many_as=1, client_id=client_id)
        return found[0] if found else None

    async def secrets_of(self, client_id: str) -> list[ClientSecret]:
        """The live secrets of a client that may not even exist. One read."""
        async with self._reading() as connection:
            return await self._tables.client_secrets.matching(connection, as_many_as=MAX_SECRETS, client_id=client_id)

    async def keys_of(self, client_id: str) -> list[ClientKey]:
        """The keys of a client that may not even exist. One read."""
        async with self._reading() as connection:
            return await self._tables.client_keys.matching(connection, as_many_as=_MAX_KEYS, client_id=client_id)

    async def use_assertion(self, client_id: str, jti: str, *, expires_at: datetime) -> None:
        """Notes that an assertion was accepted. One insert.

        Raises:
            AlreadyExists: it was accepted before.
        """
        digest = hashlib.sha256(jti.encode()).digest()
        async with self._reading() as connection:
            first = await connection.fetchval(
                "INSERT INTO used_assertion (client_id, jti_sha256, expires_at) VALUES ($1, $2, $3)"
                " ON CONFLICT DO NOTHING RETURNING 1",
                client_id,
                digest,
                expires_at,
            )
        if first is None:
            raise AlreadyExists("an assertion that was used")

    async def add_secret(self, secret: ClientSecret, *, within: str | None) -> None:
        """Adds a secret of a client that proves itself by secrets.

        Raises:
            NotFound: no such client within reach.
            AlreadyExists: two are alive.
        """
        async with self._changing() as change:
            await self._require_client(change.connection, secret.client_id, within=within, method="client_secret")
            alive = await self._tables.client_secrets.matching(change.connection, client_id=secret.client_id)
            if len(alive) >= MAX_SECRETS:
                raise AlreadyExists("two secrets are alive")
            await self._tables.client_secrets.insert(change.connection, secret)
            await change.tell(EventKind.CLIENT_SECRET, secret.id)

    async def delete_secret(self, client_id: str, secret_id: str, *, within: str | None) -> None:
        """Ends a secret. Raises NotFound."""
        async with self._changing() as change:
            await self._require_client(change.connection, client_id, within=within, method="client_secret")
            secret = await self._tables.client_secrets.get(change.connection, secret_id)
            if secret is None or secret.client_id != client_id:
                raise NotFound("secret")
            await self._tables.client_secrets.delete(change.connection, secret_id)
            await change.tell(EventKind.CLIENT_SECRET, secret_id)

    async def add_key(self, key: ClientKey, *, within: str | None) -> None:
        """Adds a key of a client that proves itself by assertions.

        Raises:
            NotFound: no such client within reach.
            AlreadyExists: it has this key, or eight.
        """
        async with self._changing() as change:
            await self._require_client(change.connection, key.client_id, within=within, method="private_key_jwt")
            if len(await self._tables.client_keys.matching(change.connection, client_id=key.client_id)) >= _MAX_KEYS:
                raise AlreadyExists("eight keys are there")
            await self._tables.client_keys.insert(change.connection, key)
            await change.tell(EventKind.CLIENT_KEY, key.client_id, key.key_id)

    async def delete_key(self, client_id: str, key_id: str, *, within: str | None) -> None:
        """Ends a key. Raises NotFound."""
        async with self._changing() as change:
            await self._require_client(change.connection, client_id, within=within, method="private_key_jwt")
            if not await self._tables.client_keys.delete(change.connection, client_id, key_id):
                raise NotFound("key")
            await change.tell(EventKind.CLIENT_KEY, client_id, key_id)

    async def issuer_of(self, tenant: str, url: str) -> ExternalIssuer | None:
        """The external issuer that a tenant knows by this `iss`. One read."""
        async with self._reading() as connection:
            found = await self._tables.external_issuers.matching(connection, tenant=tenant, url=url)
        return found[0] if found else None

    async def issuer(self, name: str) -> ExternalIssuer | None:
        """The external issuer with this name."""
        async with self._reading() as connection:
            return await self._tables.external_issuers.get(connection, name)

    async def add_issuer(self, issuer: ExternalIssuer) -> None:
        """Adds an external issuer.

        Raises:
            NotFound: no such tenant.
            AlreadyExists: its name, or its `iss` within the tenant, is taken.
        """
        async with self._changing() as change:
            if await self._tables.tenants.get(change.connection, issuer.tenant) is None:
                raise NotFound("tenant")
            await self._tables.external_issuers.insert(change.connection, issuer)
            await change.tell(EventKind.ISSUER, issuer.name)

    async def delete_issuer(self, name: str, *, within: str | None, revocation: Revocation, now: datetime) -> None:
        """Removes an external issuer, the exchange grants on its subjects, and all that was begun for them.

        Args:
            name: the issuer's.
            within: the tenant that may be acted on.
            revocation: of every subject of the issuer.
            now: when its families end.

        Raises:
            NotFound: there is no such issuer within reach.
        """
        async with self._changing() as change:
            issuer = await self._tables.external_issuers.get(change.connection, name)
            if issuer is None or within not in (None, issuer.tenant):
                raise NotFound("issuer")
            for grant in await self._tables.exchange_grants.matching(change.connection, source=name):
                await self._tables.exchange_grants.delete(change.connection, grant.id)
                await change.tell(EventKind.EXCHANGE_GRANT, grant.id)
            await end_families_of_issuer(self._tables, change, name, now=now)
            await add_revocation(self._tables, change, revocation)
            await self._tables.external_issuers.delete(change.connection, name)
            await change.tell(EventKind.ISSUER, name)

    async def exchange_grants_of(self, client_id: str) -> list[ExchangeGrant]:
        """The exchange grants of a client. One read."""
        async with self._reading() as connection:
            return await self._tables.exchange_grants.matching(connection, client_id=client_id)

    async def add_exchange_grant(self, grant: ExchangeGrant, *, within: str | None) -> None:
        """Adds an exchange grant. Raises NotFound: no such client within reach."""
        async with self._changing() as change:
            client = await self._require_client(change.connection, grant.client_id, within=within)
            if client.tenant != grant.tenant:
                raise NotFound("client of the tenant")
            await self._tables.exchange_grants.insert(change.connection, grant)
            await change.tell(EventKind.EXCHANGE_GRANT, grant.id)

    async def delete_exchange_grant(self, grant_id: str, *, within: str | None) -> None:
        """Removes an exchange grant; refresh tokens that rest on it are refused from now on. Raises NotFound."""
        async with self._changing() as change:
            grant = await self._tables.exchange_grants.get(change.connection, grant_id)
            if grant is None or within not in (None, grant.tenant):
                raise NotFound("exchange grant")
            await self._tables.exchange_grants.delete(change.connection, grant_id)
            await change.tell(EventKind.EXCHANGE_GRANT, grant_id)

    async def _require_client(
        self, connection: Connection, client_id: str, *, within: str | None, method: str | None = None
    ) -> Client:
        client = await self._tables.clients.get(connection, client_id)
        if client is None or within not in (None, client.tenant) or method not in (None, client.authentication):
            raise NotFound(f"client {client_id}")
        return client
