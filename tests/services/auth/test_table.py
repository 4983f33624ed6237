"""Authority rows: whatever SQL does to one, it is refused, and somebody is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate.errors import AlreadyExists, StoredDataUnreadable
from casemate.gate.core.records import Grant, ReleasedVersion, Revocation, RevocationKind
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from services.auth import token_keys
from services.auth.records import Client, Family, ReleaseHead, Tenant
from services.auth.store import layouts
from services.auth.store.layouts import VersionRow
from tests.services.auth.world import spiffe_id

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
KEY = SigningKey.generate().public

RECORDS = {
    "tenants": Tenant(name="acme", created_at=NOW),
    "clients": Client(
        client_id="acme-caller",
        tenant="acme",
        spiffe_id=spiffe_id("acme", "caller"),
        audiences=("inference",),
        scopes=("models.infer",),
        enabled=True,
        created_at=NOW,
    ),
    "grants": Grant(
        id="grant-1", tenant="acme", caller="t/acme/caller", verb="infer", resource="model/digits", expires_at=NOW
    ),
    "signers": Signer(
        key_id=KEY.key_id,
        tenant="acme",
        role="publisher",
        public_key=KEY,
        valid_from=NOW,
        valid_until=NOW + timedelta(days=1),
        compromised_since=NOW,
    ),
    "releases": ReleaseHead(tenant="acme", model="digits", latest=1),
    "versions": VersionRow(
        tenant="acme",
        model="digits",
        version=ReleasedVersion(number=1, manifest_sha256=b"\x01" * 32, signer_key_id=KEY.key_id, recorded_at=NOW),
    ),
    "families": Family(
        id="A" * 22,
        tenant="acme",
        client_id="acme-caller",
        spiffe_id=spiffe_id("acme", "caller"),
        subject="idp:alice",
        actors=("acme-caller",),
        audience="inference",
        scopes=("models.infer",),
        salt=b"\x02" * 16,
        generation=2,
        created_at=NOW,
        rotated_at=NOW,
        idle_expires_at=NOW + timedelta(hours=8),
        expires_at=NOW + timedelta(hours=24),
        ended_at=NOW,
    ),
    "revocations": Revocation(
        id="revocation-1", kind=RevocationKind.CLIENT, value="acme-caller", not_before=NOW, expires_at=NOW
    ),
}

TAMPERING = [
    ("tenants", "created_at = created_at + interval '1 microsecond'"),
    ("clients", "tenant = 'acme2'"),
    ("clients", "spiffe_id = spiffe_id || 'x'"),
    ("clients", "audiences = '{auth,inference}'"),
    ("clients", "scopes = '{admin}'"),
    ("clients", "enabled = false"),
    ("clients", "created_at = 'infinity'"),
    ("grants", "tenant = 'acme2'"),
    ("grants", "caller = 't/acme/mallory'"),
    ("grants", "verb = '*'"),
    ("grants", "resource = 'model/*'"),
    ("grants", "effect = 'deny'"),
    ("grants", "expires_at = NULL"),
    ("signers", "tenant = 'acme2'"),
    ("signers", "role = 'supplier'"),
    ("signers", "algorithm = 'rsa-pss-sha256'"),
    ("signers", "public_key = public_key || '\\x00'"),
    ("signers", "valid_from = valid_from - interval '1 year'"),
    ("signers", "valid_until = valid_until + interval '1 year'"),
    ("signers", "compromised_since = NULL"),
    ("releases", "latest = 2"),
    ("versions", "manifest_sha256 = sha256('other')"),
    ("versions", "recorded_at = recorded_at - interval '1 day'"),
    ("clients", "authentication = 'client_secret'"),
    ("families", "tenant = 'acme2'"),
    ("families", "spiffe_id = spiffe_id || 'x'"),
    ("families", "subject = 'idp:bob'"),
    ("families", "actors = '{}'"),
    ("families", "audience = 'auth'"),
    ("families", "scopes = '{admin}'"),
    ("families", "salt = substr(sha256('x'), 1, 16)"),
    ("families", "generation = 1"),
    ("families", "rotated_at = now()"),
    ("families", "idle_expires_at = idle_expires_at + interval '1 year'"),
    ("families", "expires_at = expires_at + interval '1 year'"),
    ("families", "ended_at = NULL"),
    ("revocations", "kind = 'subject'"),
    ("revocations", "value = 'somebody'"),
    ("revocations", "not_before = NULL"),
    ("revocations", "expires_at = expires_at - interval '1 day'"),
    ("revocations", "mac = sha256('guess')"),
    ("grants", "mac = '\\x'"),
]


async def _fill(shelf):
    """One row in every table, and a second tenant for foreign keys to point to."""
    async with shelf.pool.acquire() as connection:
        await shelf.tables.tenants.insert(connection, replace(RECORDS["tenants"], name="acme2"))
        for name, record in RECORDS.items():
            await getattr(shelf.tables, name).insert(connection, record)


@pytest.mark.parametrize("name", RECORDS)
async def test_what_was_written_is_read_back_whole(shelf, name):
    await _fill(shelf)
    table = getattr(shelf.tables, name)
    async with shelf.pool.acquire() as connection:
        assert RECORDS[name] in await table.all(connection)
        with pytest.raises(AlreadyExists):
            await table.insert(connection, RECORDS[name])
    assert shelf.alarms == []


@pytest.mark.parametrize(("name", "change"), TAMPERING)
async def test_a_row_that_sql_changed_is_refused_and_sounds_the_alarm(shelf, name, change):
    await _fill(shelf)
    table = getattr(shelf.tables, name)
    layout = getattr(layouts, name.upper())
    record = RECORDS[name]
    key = [dict(zip(layout.columns, layout.to_columns(record), strict=True))[part] for part in layout.key]
    where = " AND ".join(f"{part} = ${n}" for n, part in enumerate(layout.key, start=1))
    async with shelf.pool.acquire() as connection:
        assert await table.get(connection, *key) == record
        statement = f"UPDATE {layout.table} SET {change} WHERE {where}"  # noqa: S608  # from above
        await connection.execute(statement, *key)
        with pytest.raises(StoredDataUnreadable):
            await table.get(connection, *key)
        assert len(shelf.alarms) == 1
        assert record not in await table.all(connection)
        assert len(shelf.alarms) == 2


async def test_the_mac_of_one_row_is_none_for_another(shelf, caplog):
    await _fill(shelf)
    async with shelf.pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO access_grant SELECT 'grant-2', tenant, caller, verb, resource, effect, expires_at, mac"
            " FROM access_grant"
        )
        assert [grant.id for grant in await shelf.tables.grants.all(connection)] == ["grant-1"]
        with pytest.raises(StoredDataUnreadable):
            await shelf.tables.grants.get(connection, "grant-2")
    assert "authority alarm: a row does not verify: table=access_grant key=grant-2" in caplog.text


async def test_a_version_that_was_deleted_beneath_its_release_sounds_the_alarm(shelf):
    await _fill(shelf)
    async with shelf.pool.acquire() as connection:
        release = await shelf.tables.release(connection, "acme", "digits")
        assert [version.number for version in release.versions] == [1]
        assert shelf.alarms == []
        await connection.execute("DELETE FROM release_version")
        assert (await shelf.tables.release(connection, "acme", "digits")).versions == ()
        assert len(shelf.alarms) == 1


async def test_the_database_refuses_a_second_active_token_key(shelf):
    first = await token_keys.generate(shelf.kek, now=NOW)
    second = await token_keys.generate(shelf.kek, now=NOW)
    await shelf.store.add_first_token_key(first)
    with pytest.raises(AlreadyExists):
        await shelf.store.add_first_token_key(second)
    async with shelf.pool.acquire() as connection:
        await shelf.tables.token_keys.insert(connection, replace(second, state="retiring"))
    assert await shelf.store.active_token_key() == first


async def test_a_sealed_token_key_opens_under_its_own_kid_alone(shelf):
    first = await token_keys.generate(shelf.kek, now=NOW)
    second = await token_keys.generate(shelf.kek, now=NOW)
    opened = await token_keys.open_key(shelf.kek, first)
    assert opened.kid == first.kid
    load_der_public_key(first.public_key).verify(await opened.sign(b"token"), b"token")
    with pytest.raises(StoredDataUnreadable):
        await token_keys.open_key(shelf.kek, replace(first, sealed_private_key=second.sealed_private_key))


async def test_columns_that_are_no_columns_of_the_table_are_not_made_into_sql(shelf):
    async with shelf.pool.acquire() as connection:
        with pytest.raises(ValueError, match="no such columns"):
            await shelf.tables.grants.matching(connection, **{"1 = 1 OR id": "x"})


async def test_a_row_from_before_a_later_column_still_verifies(shelf):
    await _fill(shelf)
    client = RECORDS["clients"]
    values = dict(zip(layouts.CLIENTS.columns, layouts.CLIENTS.to_columns(client), strict=True))
    before = {name: value for name, value in values.items() if name != "authentication"}
    async with shelf.pool.acquire() as connection:
        mac = shelf.key.mac("client", client.client_id, before)
        await connection.execute("UPDATE client SET mac = $1", mac)
        assert await shelf.tables.clients.get(connection, client.client_id) == client
        # The MAC counts its columns: at another value the column cannot be left out.
        await connection.execute("UPDATE client SET authentication = 'client_secret'")
        with pytest.raises(StoredDataUnreadable):
            await shelf.tables.clients.get(connection, client.client_id)


async def test_a_swap_writes_over_the_very_row_that_was_read_or_not_at_all(shelf):
    await _fill(shelf)
    family = RECORDS["families"]
    other, third = replace(family, generation=3), replace(family, generation=4)
    async with shelf.pool.acquire() as connection:
        assert await shelf.tables.families.swap(connection, family, other)
        assert not await shelf.tables.families.swap(connection, family, third)
        assert await shelf.tables.families.get(connection, family.id) == other
