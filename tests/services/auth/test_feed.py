"""The trust feed: everything, then every change, and silence rather than old news."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import trust_service_pb2 as feed
from casemate.clock import SystemClock
from casemate.errors import CasemateError, PermissionDenied, Unavailable
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.records import Grant
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.status import from_rpc_error
from services.auth.feed import TrustPublisher
from services.auth.records import Tenant
from services.auth.store.news import NewsReader
from services.auth.store.table import Alarms
from tests.services.auth.world import build_world, grant_message

CLOCK = SystemClock()
GRANT = Grant(id="grant-1", tenant="acme", caller="t/acme/caller", verb="infer", resource="model/digits")
# In one statement, since a number without its event is answered by a snapshot.
FORGED_EVENT = (
    "WITH head AS (UPDATE trust_head SET sequence = sequence + 1 RETURNING sequence)"
    " INSERT INTO trust_event SELECT sequence, $1, $2 FROM head"
)


async def _tenant(world, name="acme"):
    operator = world.operator()
    await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant=name))
    return operator


async def _create(operator, **change):
    message = grant_message("acme", "t/acme/caller", **change)
    return (await operator.administer("CreateGrant", admin.CreateGrantRequest(grant=message))).id


async def _next(watch, kind):
    """The next message of a kind; others in between are passed over."""
    while True:
        message = await watch.read()
        if message.WhichOneof("news") == kind:
            return message


async def _next_change(watch):
    """The newest change of the next delta: a delta may tell again what the first read had told."""
    return (await _next(watch, "delta")).delta.changes[-1]


async def test_a_watch_begins_with_everything_and_goes_on_with_every_change(world):
    operator = await _tenant(world)
    first = await _create(operator)
    watch = world.service("inference").watch(feed.WatchTrustRequest())
    beginning = await watch.read()
    snapshot = beginning.snapshot
    assert snapshot.issuer == "https://auth.casemate.internal"
    assert [grant.id for grant in snapshot.grants] == [first]
    assert [key.kid for key in snapshot.token_keys] == list(world.running.trust.current.keys)

    second = await _create(operator, resource="model/faces")
    added = await _next(watch, "delta")
    assert added.delta.changes[-1].grant.id == second
    assert added.sequence == beginning.sequence + 1
    assert added.epoch == beginning.epoch

    await operator.administer("DeleteGrant", admin.DeleteGrantRequest(id=first))
    assert (await _next_change(watch)).removed_grant == first
    await operator.administer("Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value="a-token"))
    assert (await _next_change(watch)).revocation.value == "a-token"


async def test_a_heartbeat_says_how_old_the_read_is_that_it_stands_on(world):
    watch = world.service("datasets").watch(feed.WatchTrustRequest())
    beginning = await watch.read()
    beats = [await _next(watch, "heartbeat") for _ in range(3)]
    assert {(beat.epoch, beat.sequence) for beat in beats} == {(beginning.epoch, beginning.sequence)}
    assert all(beat.HasField("read_age") and beat.read_age.seconds < 60 for beat in beats)


async def test_only_the_services_that_enforce_trust_may_watch_it(world):
    for caller in (world.operator(), world.service("auth")):
        with pytest.raises(grpc.RpcError) as raised:
            await caller.watch(feed.WatchTrustRequest()).read()
        assert isinstance(from_rpc_error(raised.value), PermissionDenied)
    assert (await world.service("datasets").watch(feed.WatchTrustRequest()).read()).HasField("snapshot")


async def test_who_comes_back_hears_what_happened_since(world):
    operator = await _tenant(world)
    service = world.service("inference")
    watch = service.watch(feed.WatchTrustRequest())
    known = await watch.read()
    watch.cancel()
    created = await _create(operator)

    again = await service.watch(feed.WatchTrustRequest(epoch=known.epoch, sequence=known.sequence)).read()
    assert [change.grant.id for change in again.delta.changes] == [created]
    now = await service.watch(feed.WatchTrustRequest(epoch=again.epoch, sequence=again.sequence)).read()
    assert now.HasField("heartbeat")
    for epoch, sequence in (("another", known.sequence), (known.epoch, again.sequence + 5)):
        fresh = await service.watch(feed.WatchTrustRequest(epoch=epoch, sequence=sequence)).read()
        assert [grant.id for grant in fresh.snapshot.grants] == [created]


async def test_a_grant_inserted_by_sql_never_reaches_a_watcher(world):
    operator = await _tenant(world)
    created = await _create(operator)
    service = world.service("inference")
    watch = service.watch(feed.WatchTrustRequest())
    await watch.read()
    before = world.alarms
    # A superuser does all that the application would do, but for the MAC.
    await world.sql(
        "INSERT INTO access_grant SELECT 'grant-forged', tenant, 't/acme/mallory', verb, 'model/*', effect, expires_at,"
        " mac FROM access_grant"
    )
    await world.sql(FORGED_EVENT, "grant", ["grant-forged"])
    await world.sql("SELECT pg_notify('casemate_trust', '')")

    assert (await _next_change(watch)).removed_grant == "grant-forged"
    assert world.alarms > before
    assert list(world.running.trust.current.grants.by_id) == [created]
    beginning = await service.watch(feed.WatchTrustRequest()).read()
    assert [grant.id for grant in beginning.snapshot.grants] == [created]


async def test_news_that_tells_of_nothing_still_moves_the_number(world):
    operator = await _tenant(world)
    watch = world.service("inference").watch(feed.WatchTrustRequest())
    beginning = await watch.read()
    await world.sql(FORGED_EVENT, "revocation", ["none"])
    empty = await _next(watch, "delta")
    assert (empty.sequence, len(empty.delta.changes)) == (beginning.sequence + 1, 0)
    created = await _create(operator)
    assert (await _next_change(watch)).grant.id == created


async def test_a_second_replica_tells_what_the_first_one_changed(world, database, leaf, tmp_path):
    operator = await _tenant(world)
    # Longer than this test may take, so that only the notification can have woken it.
    async with build_world(database, leaf, tmp_path, heartbeat=timedelta(minutes=10)) as other:
        watch = other.service("inference").watch(feed.WatchTrustRequest())
        await watch.read()
        listening = "SELECT 1 FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
        while len(await world.sql(listening)) < 2:
            await asyncio.sleep(0)
        created = await _create(operator)
        assert (await _next_change(watch)).grant.id == created


async def test_a_new_life_of_the_database_begins_with_everything(world):
    watch = world.service("inference").watch(feed.WatchTrustRequest())
    before = await watch.read()
    await world.sql("UPDATE trust_head SET epoch = gen_random_uuid()")
    after = await _next(watch, "snapshot")
    assert after.epoch != before.epoch


async def test_the_gates_own_feed_follows_from_another_thread(world):
    operator = await _tenant(world)
    source = CertificateSource(world.leaf("service", service="inference"))
    channel = RotatingChannel(target=f"127.0.0.1:{world.running.port}", service_name="auth", source=source)
    state = TrustState()
    follower = TrustFeed(channel, state, CLOCK)
    heard: asyncio.Queue[TrustSnapshot] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    state.subscribe(lambda snapshot: loop.call_soon_threadsafe(heard.put_nowait, snapshot))
    follower.start()
    try:
        beginning = await heard.get()
        assert beginning.keys == world.running.trust.current.keys
        created = await _create(operator)
        while created not in (await heard.get()).grants.by_id:
            pass
        assert state.current.grants.by_id[created] == world.running.trust.current.grants.by_id[created]
        assert state.staleness(CLOCK) < timedelta(seconds=30)
    finally:
        await asyncio.to_thread(follower.close)
        await asyncio.to_thread(channel.close)
        source.close()


def _publisher(shelf, state, alarms=None, after_change=None):
    async def nothing():
        pass

    return TrustPublisher(
        reader=NewsReader(pool=shelf.pool, tables=shelf.tables, issuer="https://auth.casemate.internal", clock=CLOCK),
        state=state,
        alarms=Alarms(count=lambda: None if alarms is None else alarms.append("alarm")),
        after_change=after_change or nothing,
        looked=lambda _staleness: None,
        clock=CLOCK,
    )


async def test_no_read_no_news(shelf):
    state = TrustState()
    publisher = _publisher(shelf, state)
    await publisher.refresh()
    watch = publisher.watch(epoch="", sequence=0)
    await anext(watch)
    age = state.staleness(CLOCK)
    await shelf.pool.execute("ALTER TABLE trust_head RENAME TO away")
    with pytest.raises(CasemateError):
        await publisher.refresh()
    assert state.staleness(CLOCK) >= age
    heard = asyncio.ensure_future(anext(watch))
    await asyncio.wait([heard], timeout=0)
    assert not heard.done()
    await shelf.pool.execute("ALTER TABLE away RENAME TO trust_head")
    await publisher.refresh()
    assert (await heard).is_heartbeat
    await watch.aclose()


async def test_a_database_that_is_no_primary_gives_no_news_however_well_it_answers(shelf):
    """As after a failover that left this connection on the old primary: what it says may be old."""
    state = TrustState()
    publisher = _publisher(shelf, state)
    await publisher.refresh()
    heard = state._read_at
    await shelf.pool.execute("CREATE FUNCTION pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    await shelf.pool.execute("ALTER ROLE CURRENT_USER SET search_path = public, pg_catalog")
    await shelf.pool.expire_connections()
    with pytest.raises(Unavailable):
        await publisher.refresh()
    assert state._read_at == heard
    await shelf.pool.execute("DROP FUNCTION public.pg_is_in_recovery()")
    await publisher.refresh()
    assert state._read_at != heard


async def test_a_watcher_that_does_not_read_is_cut_off_and_the_others_are_not(shelf):
    publisher = _publisher(shelf, TrustState())
    slow = publisher.watch(epoch="", sequence=0)
    await anext(slow)
    for _ in range(300):
        await publisher.refresh()
    quick = publisher.watch(epoch="", sequence=0)
    await anext(quick)
    await publisher.refresh()
    assert (await anext(quick)).is_heartbeat
    with pytest.raises(Unavailable):
        async for _ in slow:
            pass
    await quick.aclose()


async def test_closing_ends_every_watch_and_takes_no_more(shelf):
    publisher = _publisher(shelf, TrustState())
    watch = publisher.watch(epoch="", sequence=0)
    await anext(watch)
    publisher.close()
    assert [news async for news in watch] == []
    with pytest.raises(Unavailable):
        await anext(publisher.watch(epoch="", sequence=0))


async def test_what_must_follow_a_change_is_tried_until_it_succeeds(shelf):
    outcomes = [Unavailable("the key service is away"), None]
    done = []

    async def after_change():
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        done.append("done")

    publisher = _publisher(shelf, TrustState(), after_change=after_change)
    with pytest.raises(Unavailable):
        await publisher.refresh()
    await publisher.refresh()
    await publisher.refresh()
    assert (done, outcomes) == (["done"], [])


async def _swept(shelf):
    await shelf.store.add_tenant(Tenant(name="acme", created_at=CLOCK.now()))
    await shelf.store.add_grant(GRANT)
    alarms: list[str] = []
    publisher = _publisher(shelf, TrustState(), alarms)
    await publisher.refresh()
    await publisher.sweep()
    assert alarms == []
    return publisher, alarms


async def test_a_sweep_notices_a_row_that_was_deleted_by_sql(shelf):
    publisher, alarms = await _swept(shelf)
    await shelf.pool.execute("DELETE FROM access_grant")
    await publisher.sweep()
    assert alarms == ["alarm"]


async def test_a_sweep_notices_an_old_row_that_was_put_back_with_its_good_mac(shelf):
    publisher, alarms = await _swept(shelf)
    await shelf.pool.execute("CREATE TABLE kept AS SELECT * FROM access_grant")
    await shelf.store.delete_grant(GRANT.id, within=None)
    await publisher.refresh()
    await publisher.sweep()
    assert alarms == []
    await shelf.pool.execute("INSERT INTO access_grant SELECT * FROM kept")
    await publisher.sweep()
    assert alarms == ["alarm"]


async def test_a_sweep_notices_a_row_that_was_inserted_by_sql(shelf):
    publisher, _ = await _swept(shelf)
    await shelf.pool.execute(
        "INSERT INTO access_grant SELECT 'grant-2', tenant, caller, verb, resource, effect, expires_at, mac"
        " FROM access_grant"
    )
    await publisher.sweep()
    assert shelf.alarms == ["alarm"]
