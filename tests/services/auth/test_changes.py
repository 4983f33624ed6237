"""Numbers of changes: in the order of commits, none missing, told exactly when committed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from casemate.clock import SystemClock
from casemate.errors import NotFound
from casemate.gate.core.records import Grant, RemovedGrant, RemovedSigner
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.storage.pool import open_connection
from services.auth.records import Tenant
from services.auth.store import changes
from services.auth.store.changes import EventKind, begin_change
from services.auth.store.news import NewsReader

CLOCK = SystemClock()


SIGNING = SigningKey.generate()
SIGNER = Signer(
    key_id=SIGNING.public.key_id,
    tenant="acme",
    role="publisher",
    public_key=SIGNING.public,
    valid_from=datetime(2026, 1, 1, tzinfo=UTC),
    valid_until=datetime(2027, 1, 1, tzinfo=UTC),
)


def grant(number: int) -> Grant:
    return Grant(id=f"grant-{number}", tenant="acme", caller="t/acme/caller", verb="infer", resource="model/digits")


@pytest.fixture
def reader(shelf):
    return NewsReader(pool=shelf.pool, tables=shelf.tables, issuer="https://auth.casemate.internal", clock=CLOCK)


async def _add_tenant(shelf):
    await shelf.store.add_tenant(Tenant(name="acme", created_at=CLOCK.now()))


async def test_a_change_waits_for_the_one_before_so_no_number_is_overtaken(shelf, database, reader):
    await _add_tenant(shelf)
    other = await open_connection(database)
    try:
        async with begin_change(other) as first:
            await shelf.tables.grants.insert(other, grant(1))
            await first.tell(EventKind.GRANT, "grant-1")
            second = asyncio.create_task(shelf.store.add_grant(grant(2)))
            await _until_someone_waits_for_the_lock(other)
            before = await reader.read()
            assert not second.done()
            assert (before.sequence, list(before.snapshot.grants.by_id)) == (1, [])
        await second
    finally:
        await other.close()
    after = await reader.read(epoch=before.epoch, sequence=before.sequence)
    assert after.sequence == 3
    assert after.changes == (grant(1), grant(2))


async def test_a_change_that_fails_leaves_no_number_behind(shelf, reader):
    await _add_tenant(shelf)
    await shelf.store.add_grant(grant(1))
    with pytest.raises(NotFound):
        await shelf.store.delete_grant("grant-9", within=None)
    with pytest.raises(RuntimeError):
        await _fail_after_telling(shelf, grant(2))
    await shelf.store.add_grant(grant(3))
    news = await reader.read()
    assert news.sequence == 3
    assert set(news.snapshot.grants.by_id) == {"grant-1", "grant-3"}
    rows = await shelf.pool.fetch("SELECT sequence FROM trust_event ORDER BY sequence")
    assert [row["sequence"] for row in rows] == [1, 2, 3]


async def test_many_changes_at_once_get_every_number_once(shelf):
    await _add_tenant(shelf)
    await asyncio.gather(*(shelf.store.add_grant(grant(number)) for number in range(40)))
    rows = await shelf.pool.fetch("SELECT sequence FROM trust_event ORDER BY sequence")
    assert [row["sequence"] for row in rows] == list(range(1, 42))


async def test_a_record_that_changed_twice_is_told_once_as_it_is_now(shelf, reader):
    await _add_tenant(shelf)
    start = await reader.read()
    await shelf.store.add_grant(grant(1))
    await shelf.store.add_grant(grant(2))
    await shelf.store.delete_grant("grant-1", within=None)
    news = await reader.read(epoch=start.epoch, sequence=start.sequence)
    assert news.changes == (grant(2), RemovedGrant("grant-1"))


async def test_a_signer_whose_row_was_altered_by_sql_is_told_as_gone_and_a_restored_one_as_there(shelf, reader):
    await _add_tenant(shelf)
    await shelf.store.add_signer(SIGNER)
    start = await reader.read()
    assert start.snapshot.signers == {SIGNER.key_id: SIGNER}
    announce = (
        "WITH head AS (UPDATE trust_head SET sequence = sequence + 1 RETURNING sequence) "
        "INSERT INTO trust_event SELECT sequence, 'signer', ARRAY[$1] FROM head"
    )
    await shelf.pool.execute("UPDATE signer SET valid_until = valid_until + interval '1 year'")
    await shelf.pool.execute(announce, SIGNER.key_id)
    altered = await reader.read(epoch=start.epoch, sequence=start.sequence)
    assert altered.changes == (RemovedSigner(SIGNER.key_id),)
    await shelf.pool.execute("UPDATE signer SET valid_until = valid_until - interval '1 year'")
    await shelf.pool.execute(announce, SIGNER.key_id)
    restored = await reader.read(epoch=start.epoch, sequence=altered.sequence)
    assert restored.changes == (SIGNER,)


async def test_who_is_further_behind_than_events_are_kept_gets_everything(shelf, reader, monkeypatch):
    monkeypatch.setattr(changes, "KEPT_EVENTS", 2)
    await _add_tenant(shelf)
    start = await reader.read()
    for number in range(3):
        await shelf.store.add_grant(grant(number))
    behind = await reader.read(epoch=start.epoch, sequence=0)
    assert set(behind.snapshot.grants.by_id) == {"grant-0", "grant-1", "grant-2"}
    near = await reader.read(epoch=start.epoch, sequence=2)
    assert near.changes == (grant(1), grant(2))


@pytest.mark.parametrize("forgery", ["('nonsense', '{x}')", "('grant', '{a,b}')", "('release', '{a}')"])
async def test_an_event_that_the_application_does_not_write_leads_to_a_snapshot(shelf, reader, forgery):
    await _add_tenant(shelf)
    start = await reader.read()
    await shelf.store.add_grant(grant(1))
    await shelf.pool.execute(f"UPDATE trust_event SET (kind, record_key) = {forgery}")  # noqa: S608  # from above
    news = await reader.read(epoch=start.epoch, sequence=0)
    assert set(news.snapshot.grants.by_id) == {"grant-1"}


async def test_another_life_of_the_database_has_another_epoch(shelf, reader):
    first = await reader.read()
    assert (await reader.read(epoch=first.epoch, sequence=0)).is_heartbeat
    await shelf.pool.execute("UPDATE trust_head SET epoch = gen_random_uuid()")
    second = await reader.read(epoch=first.epoch, sequence=0)
    assert second.epoch != first.epoch
    assert second.snapshot is not None


async def test_who_knows_more_than_the_database_gets_everything(shelf, reader):
    first = await reader.read()
    news = await reader.read(epoch=first.epoch, sequence=7)
    assert news.snapshot is not None
    assert news.sequence == 0


async def _fail_after_telling(shelf, record):
    async with shelf.pool.acquire() as connection, begin_change(connection) as change:
        await shelf.tables.grants.insert(connection, record)
        await change.tell(EventKind.GRANT, record.id)
        raise RuntimeError


async def _until_someone_waits_for_the_lock(connection):
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )
    while not await connection.fetchval(waiting):
        await asyncio.sleep(0)
