"""Clients in memory: a read saved, and never a change missed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.clock import SystemClock
from casemate.errors import Unauthenticated, Unavailable
from services.auth.known_clients import NEWS_WITHIN, KnownClients
from tests.services.auth.lines import GATEWAY, HandClock
from tests.services.auth.world import SOON, build_world, failure


class Rows:
    """Rows that count how often they are read, and can be away."""

    def __init__(self):
        self.rows = {GATEWAY.spiffe_id: GATEWAY}
        self.reads = 0
        self.away = False
        self.during = lambda: None

    async def read(self, spiffe_id):
        self.reads += 1
        if self.away:
            raise Unavailable("away")
        found = self.rows.get(spiffe_id)
        self.during()
        return found


@pytest.fixture
def rows():
    return Rows()


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def news():
    return [timedelta(0)]


@pytest.fixture
def known(rows, clock, news):
    return KnownClients(read=rows.read, news_age=lambda: news[0], clock=clock)


async def test_a_client_is_read_once(known, rows):
    for _ in range(3):
        assert await known.by_certificate(GATEWAY.spiffe_id) == GATEWAY
    assert rows.reads == 1


async def test_a_change_that_is_told_is_read_and_that_of_another_costs_nothing(known, rows):
    await known.by_certificate(GATEWAY.spiffe_id)
    rows.rows[GATEWAY.spiffe_id] = disabled = replace(GATEWAY, enabled=False)
    known.forget(frozenset({"another"}))
    assert await known.by_certificate(GATEWAY.spiffe_id) == GATEWAY
    known.forget(frozenset({GATEWAY.client_id}))
    assert await known.by_certificate(GATEWAY.spiffe_id) == disabled


async def test_what_was_read_while_a_change_was_told_is_not_kept(known, rows):
    rows.during = lambda: known.forget(frozenset({GATEWAY.client_id}))
    await known.by_certificate(GATEWAY.spiffe_id)
    rows.during = lambda: None
    rows.rows[GATEWAY.spiffe_id] = disabled = replace(GATEWAY, enabled=False)
    assert await known.by_certificate(GATEWAY.spiffe_id) == disabled


async def test_without_fresh_news_nobody_is_known(known, rows, news):
    await known.by_certificate(GATEWAY.spiffe_id)
    rows.away, news[0] = True, timedelta(seconds=4.9)
    assert await known.by_certificate(GATEWAY.spiffe_id) == GATEWAY
    news[0] = timedelta(seconds=5)
    with pytest.raises(Unavailable):
        await known.by_certificate(GATEWAY.spiffe_id)


async def test_a_row_counts_as_verified_for_a_minute(known, rows, clock):
    await known.by_certificate(GATEWAY.spiffe_id)
    clock.pass_by(timedelta(seconds=59))
    await known.by_certificate(GATEWAY.spiffe_id)
    assert rows.reads == 1
    clock.pass_by(timedelta(seconds=1))
    await known.by_certificate(GATEWAY.spiffe_id)
    assert rows.reads == 2


async def test_strangers_and_the_disabled_are_read_each_time_and_fill_nothing(known, rows):
    rows.rows[GATEWAY.spiffe_id] = replace(GATEWAY, enabled=False)
    for spiffe_id in ("spiffe://x/t/y/z", GATEWAY.spiffe_id):
        before = rows.reads
        for _ in range(2):
            await known.by_certificate(spiffe_id)
        assert rows.reads == before + 2


async def test_a_client_that_one_replica_disables_gets_no_token_from_another(world, database, leaf, tmp_path):
    """The other replica knows it: it has just issued to it. Once it has heard of the change it reads it again."""
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    async with build_world(database, leaf, tmp_path, heartbeat=timedelta(minutes=1)) as other:
        there = other.client("acme", "caller")
        await there.token("inference")
        await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-caller"))
        assert isinstance(await failure(caller.token("inference")), Unauthenticated)
        [[told]] = await world.sql("SELECT sequence FROM trust_head")
        async with asyncio.timeout(SOON):
            while other.running.trust.current.sequence < told:
                await asyncio.sleep(0)
        # At once: with news that are five seconds old, it would be read again in any case.
        assert isinstance(await failure(there.token("inference")), Unauthenticated)


async def test_what_a_replica_still_signs_for_a_disabled_client_is_revoked_when_it_is_born(world):
    """A token is refused when it was issued at or before `not_before`, and that lies ahead of the change."""
    operator = world.operator()
    await world.enlist(operator, "acme", "caller", audiences=("auth",), scopes=("admin",))
    before = SystemClock().now()
    await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-caller"))
    rows = await world.sql("SELECT kind, not_before, expires_at FROM revocation WHERE value = 'acme-caller'")
    assert {row["kind"] for row in rows} == {"client", "subject"}
    for row in rows:
        assert row["not_before"] >= before + NEWS_WITHIN + timedelta(seconds=30)
        assert row["expires_at"] >= row["not_before"] + timedelta(minutes=5)


async def test_the_replica_that_disabled_a_client_knows_it_no_more_when_the_call_returns(database, leaf, tmp_path):
    async with build_world(database, leaf, tmp_path, heartbeat=timedelta(minutes=1)) as world:
        operator = world.operator()
        for name in ("one", "two", "three"):
            caller = await world.enlist(operator, "acme", name, audiences=("inference",), scopes=("models.infer",))
            await caller.token("inference")
            await operator.administer("DisableClient", admin.DisableClientRequest(client_id=f"acme-{name}"))
            assert isinstance(await failure(caller.token("inference")), Unauthenticated)
