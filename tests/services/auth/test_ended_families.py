"""Families that ended and were put back by SQL, each beside what rightly succeeds."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import pytest_asyncio

from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import Reason, Unauthenticated
from services.auth.store.changes import begin_change
from services.auth.store.ended_families import EndedFamilies
from services.auth.store.families import end_families
from services.auth.store.news import NewsReader
from tests.services.auth.exchange_world import House
from tests.services.auth.lines import GATEWAY, ISSUER, begin_line, enlist
from tests.services.auth.world import SOON, build_world


@pytest_asyncio.fixture
async def line(shelf):
    await enlist(shelf)
    return await begin_line(shelf)


async def _refused(call):
    with pytest.raises(Unauthenticated) as raised:
        await call
    assert raised.value.reason is Reason.GRANT_INVALID


@asynccontextmanager
async def _put_back(line, shelf):
    """Inside, the family ends; after, its row is there again as it was before."""
    old = await shelf.pool.fetchrow("SELECT * FROM refresh_family WHERE id = $1", line.family.id)
    yield
    await shelf.pool.execute("DELETE FROM refresh_family WHERE id = $1", line.family.id)
    await shelf.pool.execute("INSERT INTO refresh_family SELECT ($1::refresh_family).*", old)
    assert (await line.row()).ended_at is None
    assert not shelf.alarms


async def _is_refused_with_an_alarm(line, shelf):
    await _refused(line.refresh(line.first))
    assert shelf.alarms
    with pytest.raises(Unauthenticated):
        await line.families.current(line.first)


@pytest.mark.parametrize(
    ("later", "said"), [(timedelta(0), False), (timedelta(minutes=7), True), (timedelta(hours=7), False)]
)
async def test_a_familys_own_older_row_put_back_after_its_end_is_refused_with_an_alarm(line, shelf, later, said):
    """The row is genuine, so its MAC verifies: that it ended is told by a row of its own, until nothing could live."""
    async with _put_back(line, shelf):
        await line.families.end_own(line.first, client=GATEWAY)
        line.clock.pass_by(later)
        await NewsReader(pool=shelf.pool, tables=shelf.tables, issuer=ISSUER, clock=line.clock).forget_expired(
            line.clock.now()
        )
        if not said:
            await shelf.pool.execute("DELETE FROM revocation")
    # Another replica, which has seen nothing of it.
    other = await begin_line(shelf, line.clock)
    await _refused(other.refresh(line.first))
    await _is_refused_with_an_alarm(line, shelf)
    await other.refresh(other.first)


async def test_a_row_put_back_before_any_end_is_used_on(line, shelf):
    """The twin of those that are refused."""
    async with _put_back(line, shelf):
        line.clock.pass_by(timedelta(hours=7))
    await line.refresh(line.first)
    assert not shelf.alarms


@pytest.mark.parametrize("by", ["subject", "client_id", "spiffe_id"])
async def test_however_a_family_ended_its_older_row_is_refused(line, shelf, by):
    async with _put_back(line, shelf), shelf.pool.acquire() as connection, begin_change(connection) as change:
        ended = await end_families(shelf.tables, change, now=line.clock.now(), **{by: getattr(line.family, by)})
        assert ended == 1
    await _is_refused_with_an_alarm(line, shelf)
    # And once more: what was put back is ended again without a fault.
    async with shelf.pool.acquire() as connection, begin_change(connection) as change:
        assert await end_families(shelf.tables, change, now=line.clock.now(), subject=line.family.subject) == 1


async def test_who_deletes_that_a_family_ended_too_meets_the_memory_of_those_who_saw_it(shelf):
    await enlist(shelf)
    ended = EndedFamilies(pool=shelf.pool, tables=shelf.tables)
    line = await begin_line(shelf, ended=ended)
    async with _put_back(line, shelf):
        async with shelf.pool.acquire() as connection, begin_change(connection) as change:
            await end_families(shelf.tables, change, now=line.clock.now(), subject=line.family.subject)
        await ended.look(line.clock.now())
        await shelf.pool.execute("DELETE FROM ended_family")
    await ended.look(line.clock.now())
    assert shelf.alarms == ["alarm"]
    await _is_refused_with_an_alarm(line, shelf)
    line.clock.pass_by(timedelta(days=1))
    sounded = len(shelf.alarms)
    await ended.look(line.clock.now())
    assert len(shelf.alarms) == sounded, "what expired is forgotten, and nothing is missed"


async def test_an_end_that_sql_made_up_is_not_remembered(line, shelf):
    ended = EndedFamilies(pool=shelf.pool, tables=shelf.tables)
    await shelf.pool.execute("INSERT INTO ended_family VALUES ('made-up', $1, '\\x00')", line.family.expires_at)
    await ended.look(line.clock.now())
    assert not ended.is_seen("made-up")
    assert shelf.alarms
    await line.refresh(line.first)


async def test_ends_are_kept_until_nothing_of_the_family_could_live_and_no_longer(line, shelf):
    await line.families.end_own(line.first, client=GATEWAY)
    news = NewsReader(pool=shelf.pool, tables=shelf.tables, issuer=ISSUER, clock=line.clock)
    await news.forget_expired(line.family.expires_at)
    assert await shelf.pool.fetchval("SELECT count(*) FROM refresh_family") == 0
    assert await shelf.pool.fetchval("SELECT count(*) FROM ended_family") == 1
    await news.forget_expired(line.family.expires_at + timedelta(microseconds=1))
    assert await shelf.pool.fetchval("SELECT count(*) FROM ended_family") == 0


async def test_a_running_service_misses_the_end_that_it_saw(database, leaf, tmp_path):
    async with build_world(database, leaf, tmp_path, sweep=timedelta(0)) as world:
        house = House(world)
        await house.build()
        begun = [await house.exchange(house.idp.about(), request_refresh_token=True) for _ in range(2)]
        (old,) = await world.sql("SELECT * FROM refresh_family WHERE id = $1", begun[0].refresh_token.split(".")[1])
        await house.gateway.ask("RevokeToken", tokens.RevokeTokenRequest(refresh_token=begun[0].refresh_token))
        await world.sql("DELETE FROM refresh_family WHERE id = $1", old["id"])
        await world.sql("INSERT INTO refresh_family SELECT ($1::refresh_family).*", old)
        assert world.alarms == 0
        await world.sql("DELETE FROM ended_family")
        async with asyncio.timeout(SOON):
            while world.alarms == 0:
                await asyncio.sleep(0.01)
        await _refused(house.gateway.refresh(begun[0].refresh_token))
        await house.gateway.refresh(begun[1].refresh_token)
