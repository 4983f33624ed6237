"""The authority as the domain changes it: one method, one transaction.

Everything here refuses by raising and leaves nothing half done. `within` is the
tenant that whoever asks may act on, or None for all of them: what lies outside
is not found, like what does not exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from casemate.errors import AlreadyExists, Conflict, NotFound, Reason, StoredDataUnreadable
from casemate.gate.core.records import Grant, Release, ReleasedVersion, Revocation, RevocationKind
from casemate.signing.signers import Signer
from casemate.storage.pool import storage_errors
from services.auth.records import Client, LabelRow, OperatorChange, ReleaseHead, Tenant, TokenKey
from services.auth.store import clients
from services.auth.store.changes import Change, EventKind, begin_change
from services.auth.store.families import end_families, end_families_of_issuer, session_revocation
from services.auth.store.layouts import VersionRow
from services.auth.store.revoking import add_revocation, covering, revoke_clients_of
from services.auth.store.tables import AuthorityTables
from services.auth.store.token_keys import activate

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool


_FAMILY_COLUMNS: Final = {
    RevocationKind.SESSION: "id",
    RevocationKind.CLIENT: "client_id",
    RevocationKind.SUBJECT: "subject",
    RevocationKind.SPIFFE_ID: "spiffe_id",
}


async def holds_rows(pool: Pool) -> bool:
    """Whether there is anything yet that the authority key has to verify."""
    with storage_errors():
        return bool(await pool.fetchval("SELECT EXISTS (SELECT FROM tenant) OR EXISTS (SELECT FROM token_key)"))


class AuthorityStore:
    """Reads and changes the authority in its database."""

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

    async def client(self, client_id: str) -> Client | None:
        """The client with this identifier."""
        async with self._reading() as connection:
            return await self._tables.clients.get(connection, client_id)

    async def tenant_of_issuer(self, name: str) -> str | None:
        """The tenant of the external issuer with this name."""
        async with self._reading() as connection:
            issuer = await self._tables.external_issuers.get(connection, name)
        return None if issuer is None else issuer.tenant

    async def is_issuer_revoked(self, name: str) -> bool:
        """Whether there is a revocation of all subjects of an external issuer: it was removed lately."""
        async with self._reading() as connection:
            return bool(await self._tables.revocations.matching(connection, kind="subject", value=f"{name}:"))

    async def add_tenant(self, tenant: Tenant) -> None:
        """Adds a tenant.

        Raises:
            AlreadyExists: its name is taken.
        """
        async with self._changing() as change:
            await self._tables.tenants.insert(change.connection, tenant)
            await change.tell(EventKind.TENANT, tenant.name)

    async def add_client(self, client: Client, *, within: str | None = None) -> None:
        """Adds a client.

        Raises:
            NotFound: there is no such tenant.
            AlreadyExists: its identifier or SPIFFE ID is taken; says which, if by a client within reach.
        """
        async with self._changing() as change:
            await self._require_tenant(change.connection, client.tenant)
            await clients.add_client(self._tables, change, client, within=within)

    async def disable_client(
        self, client_id: str, *, within: str | None, revocations: Sequence[Revocation], now: datetime
    ) -> None:
        """As `clients.disable_client`."""
        async with self._changing() as change:
            await clients.disable_client(
                self._tables, change, client_id, within=within, revocations=revocations, now=now
            )

    async def enable_client(self, client_id: str, *, within: str | None, now: datetime) -> datetime | None:
        """As `clients.enable_client`."""
        async with self._changing() as change:
            return await clients.enable_client(self._tables, change, client_id, within=within, now=now)

    async def add_grant(self, grant: Grant) -> None:
        """Adds a grant.

        Raises:
            NotFound: there is no such tenant.
        """
        async with self._changing() as change:
            await self._require_tenant(change.connection, grant.tenant)
            await self._tables.grants.insert(change.connection, grant)
            await change.tell(EventKind.GRANT, grant.id)

    async def delete_grant(self, grant_id: str, *, within: str | None) -> None:
        """Removes a grant.

        Raises:
            NotFound: there is no such grant within reach.
        """
        async with self._changing() as change:
            grant = await self._tables.grants.get(change.connection, grant_id)
            if grant is None or within not in (None, grant.tenant):
                raise NotFound(f"grant {grant_id}")
            await self._tables.grants.delete(change.connection, grant_id)
            await change.tell(EventKind.GRANT, grant_id)

    async def add_signer(self, signer: Signer) -> None:
        """Adds a signer.

        Raises:
            NotFound: there is no such tenant.
            AlreadyExists: the key is registered, whoever it is for.
        """
        async with self._changing() as change:
            await self._require_tenant(change.connection, signer.tenant)
            await self._tables.signers.insert(change.connection, signer)
            await change.tell(EventKind.SIGNER, signer.key_id)

    async def revoke_signer(self, key_id: str, *, since: datetime, within: str | None) -> None:
        """Has nothing trusted that this signer signed since a moment; the earliest moment ever given stays.

        Raises:
            NotFound: there is no such signer within reach.
        """
        async with self._changing() as change:
            signer = await self._tables.signers.get(change.connection, key_id)
            if signer is None or within not in (None, signer.tenant):
                raise NotFound(f"signer {key_id}")
            if signer.compromised_since is None or since < signer.compromised_since:
                await self._tables.signers.replace(change.connection, replace(signer, compromised_since=since))
                await change.tell(EventKind.SIGNER, key_id)
                for label in await self._tables.labels.matching(change.connection, signer_key_id=key_id):
                    await change.tell(EventKind.RELEASE, label.tenant, label.model)

    async def revoke(self, revocation: Revocation, *, now: datetime) -> str:
        """Adds a revocation and returns its identifier: an earlier one's, where that says the same.

        Refresh families of what it names end with it: they would outlive it.
        """
        if revocation.kind is RevocationKind.TOKEN:
            # A client may repeat this as often as it likes: without the lock of changes, as it changes nothing.
            async with self._reading() as connection:
                known = await covering(self._tables, connection, revocation)
            if known is not None:
                return known
        async with self._changing() as change:
            column = _FAMILY_COLUMNS.get(revocation.kind)
            living = 0
            if column is not None:
                living = await end_families(self._tables, change, now=now, **{column: revocation.value})
            if revocation.kind is RevocationKind.SUBJECT and revocation.value.endswith(":"):
                await end_families_of_issuer(self._tables, change, revocation.value[:-1], now=now)
            if revocation.kind is RevocationKind.SPIFFE_ID:
                await revoke_clients_of(self._tables, change, revocation.value, now=now)
            if revocation.kind is RevocationKind.TOKEN:
                # What was exchanged for a token without a session has that token for its session.
                await add_revocation(self._tables, change, session_revocation(revocation.value, now))
            return await add_revocation(self._tables, change, revocation, extend=living > 0)

    async def replace_token_key(self, kid: str, *, successor: TokenKey, revocation: Revocation, now: datetime) -> str:
        """Revokes a token key; if it is the active one, another signs from now on.

        That is the published one where there is one, since everybody knows it; otherwise the successor.

        Returns:
            The revocation's identifier.

        Raises:
            NotFound: there is no such key.
        """
        async with self._changing() as change:
            key = await self._tables.token_keys.get(change.connection, kid)
            if key is None:
                raise NotFound(f"token key {kid}")
            if key.state != "revoked":
                await self._tables.token_keys.replace(change.connection, replace(key, state="revoked", changed_at=now))
            if key.state == "active":
                published = await self._tables.token_keys.matching(change.connection, state="published")
                if published:
                    await activate(self._tables, change, published[0], now=now)
                else:
                    await self._tables.token_keys.insert(change.connection, successor)
                    await change.tell(EventKind.TOKEN_KEY, successor.kid)
            await change.tell(EventKind.TOKEN_KEY, kid)
            return await add_revocation(self._tables, change, revocation)

    async def active_token_key(self) -> TokenKey | None:
        """The key that signs now, if there is one and its row verifies."""
        async with self._reading() as connection:
            found = await self._tables.token_keys.matching(connection, state="active")
        return found[0] if found else None

    async def add_first_token_key(self, key: TokenKey) -> None:
        """Adds the active key, unless another replica was faster.

        Raises:
            AlreadyExists: there is an active key, whether or not its row verifies.
        """
        async with self._changing() as change:
            await self._tables.token_keys.insert(change.connection, key)
            await change.tell(EventKind.TOKEN_KEY, key.kid)

    async def signer(self, key_id: str) -> Signer | None:
        """The signer with this key id."""
        async with self._reading() as connection:
            return await self._tables.signers.get(connection, key_id)

    async def record_release(self, tenant: str, model: str, version: ReleasedVersion) -> Release:
        """Appends a version if its number is the next one; the same version again changes nothing.

        Raises:
            NotFound: there is no such tenant.
            Conflict: another version has that number, or it is not the next one.
        """
        async with self._changing() as change:
            connection = change.connection
            await self._require_tenant(connection, tenant)
            head = await self._tables.releases.get(connection, tenant, model)
            recorded = await self._tables.versions.get(connection, tenant, model, version.number)
            if recorded is None:
                await self._append(change, head, tenant, model, version)
            elif _identity(recorded.version) != _identity(version):
                raise Conflict(f"{model} has another version {version.number}", reason=Reason.CONCURRENT_UPDATE)
            release = await self._tables.release(connection, tenant, model)
        if release is None:
            raise NotFound(f"release of {model}")
        return release

    async def set_label(self, label: LabelRow, *, manifest_sha256: bytes) -> Release:
        """Has a label name a version if its revision is greater than the last; the same envelope again changes nothing.

        Raises:
            NotFound: there is no such release, or no such version in it.
            Conflict: the revision is not greater than the last one.
        """
        async with self._changing() as change:
            connection = change.connection
            release = await self._tables.release(connection, label.tenant, label.model)
            digests = {version.number: version.manifest_sha256 for version in release.versions} if release else {}
            if release is None or (label.number and digests.get(label.number) != manifest_sha256):
                raise NotFound(f"version {label.number} of {label.model}")
            before = await self._tables.labels.get(connection, label.tenant, label.model, label.label)
            if before is not None and before.envelope == label.envelope:
                return release
            if before is not None and label.revision <= before.revision:
                raise Conflict(f"revision of label {label.label}", reason=Reason.CONCURRENT_UPDATE)
            if before is None:
                await self._tables.labels.insert(connection, label)
            else:
                await self._tables.labels.replace(connection, label)
            await change.tell(EventKind.RELEASE, label.tenant, label.model)
            changed = await self._tables.release(connection, label.tenant, label.model)
        if changed is None:
            raise NotFound(f"release of {label.model}")
        return changed

    async def bootstrap(self, tenant: Tenant, operator: Client, made: OperatorChange) -> None:
        """Adds the house tenant and the first operator, once per database.

        Raises:
            AlreadyExists: this database had a first operator.
        """
        async with self._changing() as change:
            if await self._tables.tenants.get(change.connection, tenant.name) is None:
                await self._tables.tenants.insert(change.connection, tenant)
                await change.tell(EventKind.TENANT, tenant.name)
            await self._add_operator(change, operator, made)
            first = await change.connection.fetchval(
                "INSERT INTO operator_bootstrap (client_id, created_at) VALUES ($1, $2)"
                " ON CONFLICT DO NOTHING RETURNING 1",
                operator.client_id,
                operator.created_at,
            )
            if first is None:
                raise AlreadyExists("this database already had its first operator")

    async def replace_operator(
        self, operator: Client, *, reason: str, revocations: Callable[[str], Sequence[Revocation]]
    ) -> str:
        """Puts another operator in the place of the one made last, which is disabled; returns the former's identifier.

        Args:
            operator: the new one.
            reason: why.
            revocations: of all that a client holds.

        Raises:
            NotFound: there never was a first one.
            AlreadyExists: the new one's identifier or SPIFFE ID is taken.
        """
        now = operator.created_at
        async with self._changing() as change:
            former = await self._last_operator(change.connection)
            made = OperatorChange(client_id=operator.client_id, replaces=former, reason=reason, at=now)
            await self._add_operator(change, operator, made)
            await change.connection.execute(
                "UPDATE operator_bootstrap SET client_id = $1, created_at = $2", operator.client_id, now
            )
            # A row that does not verify stays as it is: it gives nobody anything, and to write it anew would.
            with suppress(StoredDataUnreadable):
                client = await self._tables.clients.get(change.connection, former)
                if client is not None and client.enabled:
                    await self._tables.clients.replace(change.connection, replace(client, enabled=False))
                    await change.tell(EventKind.CLIENT, former)
            await end_families(self._tables, change, now=now, client_id=former)
            for revocation in revocations(former):
                await add_revocation(self._tables, change, revocation)
        return former

    async def _last_operator(self, connection: Connection) -> str:
        """The operator made last, by rows that verify: SQL must not choose who is disabled, and who is not."""
        noted: str | None = await connection.fetchval("SELECT client_id FROM operator_bootstrap")
        made = await self._tables.operator_changes.all(connection)
        if not made and noted is None:
            raise NotFound("a first operator to replace")
        last = max(made, key=lambda one: one.at).client_id if made else str(noted)
        if last != noted:
            self._tables.sound("not the operator made last", table="operator_bootstrap", key=str(noted))
        return last

    async def clients_of(self, tenant: str) -> list[Client]:
        """The clients of a tenant, by identifier."""
        async with self._reading() as connection:
            return await self._tables.clients.matching(connection, tenant=tenant)

    async def _add_operator(self, change: Change, operator: Client, made: OperatorChange) -> None:
        await self._tables.clients.insert(change.connection, operator)
        await change.tell(EventKind.CLIENT, operator.client_id)
        await self._tables.operator_changes.insert(change.connection, made)
        await change.tell(EventKind.OPERATOR, operator.client_id)

    async def _append(
        self, change: Change, head: ReleaseHead | None, tenant: str, model: str, version: ReleasedVersion
    ) -> None:
        latest = 0 if head is None else head.latest
        if version.number != latest + 1:
            raise Conflict(f"{model} stands at {latest}, not before {version.number}", reason=Reason.CONCURRENT_UPDATE)
        swapped = ReleaseHead(tenant=tenant, model=model, latest=version.number)
        if head is None:
            await self._tables.releases.insert(change.connection, swapped)
        else:
            await self._tables.releases.replace(change.connection, swapped)
        await self._tables.versions.insert(change.connection, VersionRow(tenant=tenant, model=model, version=version))
        await change.tell(EventKind.RELEASE, tenant, model)

    async def _require_tenant(self, connection: Connection, tenant: str) -> None:
        if await self._tables.tenants.get(connection, tenant) is None:
            raise NotFound(f"tenant {tenant}")


def _identity(version: ReleasedVersion) -> tuple[bytes, str]:
    return version.manifest_sha256, version.signer_key_id
