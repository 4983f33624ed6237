"""Signing keys that run themselves: always one that signs, never one that nobody knows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import AlreadyExists, StoredDataUnreadable
from casemate.gate.core.records import Revocation, RevocationKind
from services.auth import token_keys
from services.auth.key_schedule import KeySchedule, Step, Turn, next_step
from services.auth.records import VERIFYING, TokenKey
from services.auth.store.news import NewsReader
from tests.services.auth.lines import ISSUER, START, HandClock
from tests.services.auth.test_key_ring import build_ring

DAY = timedelta(days=1)
SCHEDULE = KeySchedule()


def _key(state, changed_at=START, kid="a"):
    return TokenKey(
        kid=kid,
        algorithm="EdDSA",
        public_key=b"",
        sealed_private_key=b"",
        state=state,
        created_at=START,
        changed_at=changed_at,
    )


DUE = [
    ([_key("active")], 15 * DAY - timedelta(seconds=1), None),
    ([_key("active")], 15 * DAY, Step(turn=Turn.PREPARE)),
    ([_key("active"), _key("prepared", kid="b")], timedelta(0), Step(turn=Turn.PUBLISH, kid="b")),
    ([_key("active"), _key("published", kid="b")], 25 * DAY - timedelta(seconds=1), None),
    ([_key("active"), _key("published", kid="b")], 25 * DAY, Step(turn=Turn.ACTIVATE, kid="b")),
    # However late it is, nobody is surprised by a key.
    ([_key("active"), _key("published", START + 40 * DAY, "b")], 40 * DAY + timedelta(minutes=59), None),
    ([_key("active"), _key("published", START + 40 * DAY, "b")], 40 * DAY + timedelta(hours=1), "b"),
    ([_key("active"), _key("retiring", kid="b")], timedelta(minutes=15) - timedelta(seconds=1), None),
    ([_key("active"), _key("retiring", kid="b")], timedelta(minutes=15), Step(turn=Turn.RETIRE, kid="b")),
    ([_key("published", kid="b")], 99 * DAY, None),
    ([_key("active"), _key("revoked", kid="b")], 10 * DAY, None),
    ([replace(_key("active"), changed_at=None)], 15 * DAY, Step(turn=Turn.PREPARE)),
]


@pytest.mark.parametrize(("keys", "after", "due"), DUE)
def test_each_step_is_due_at_its_moment_and_not_before(keys, after, due):
    if due == "b":
        due = Step(turn=Turn.ACTIVATE, kid="b")
    assert next_step(keys, now=START + after, schedule=SCHEDULE) == due


@given(
    gaps=st.lists(st.integers(1, 20 * 24 * 60), min_size=30, max_size=80),
    lifetime=st.integers(3, 60 * 24),
)
@settings(deadline=None, max_examples=60)
def test_whenever_it_is_looked_at_one_key_signs_and_each_was_known_before(gaps, lifetime):
    schedule = KeySchedule(lifetime=timedelta(hours=lifetime))
    now, keys, made = START, {"k0": _key("active", kid="k0")}, 0
    for gap in gaps:
        now += timedelta(minutes=gap)
        while (step := next_step(list(keys.values()), now=now, schedule=schedule)) is not None:
            match step.turn:
                case Turn.PREPARE:
                    made += 1
                    keys[f"k{made}"] = _key("prepared", now, f"k{made}")
                case Turn.PUBLISH:
                    keys[step.kid] = replace(keys[step.kid], state="published", changed_at=now)
                case Turn.ACTIVATE:
                    assert now - keys[step.kid].changed_at >= schedule.known_before
                    for kid in [kid for kid, key in keys.items() if key.state == "active"]:
                        keys[kid] = replace(keys[kid], state="retiring", changed_at=now)
                    keys[step.kid] = replace(keys[step.kid], state="active", changed_at=now)
                case Turn.RETIRE:
                    assert now - keys.pop(step.kid).changed_at >= schedule.verified_after
        assert [key.state for key in keys.values()].count("active") == 1
        assert len(keys) <= 3


def test_a_life_too_short_for_its_schedule_is_refused():
    KeySchedule(lifetime=timedelta(hours=3))
    with pytest.raises(ValueError, match="too short"):
        KeySchedule(lifetime=timedelta(hours=2))


async def _states(shelf):
    rows = await shelf.pool.fetch("SELECT state FROM token_key ORDER BY state")
    return [row[0] for row in rows]


async def test_a_whole_life_by_the_clock_alone(shelf):
    clock = HandClock()
    ring = build_ring(shelf, clock)
    reader = NewsReader(pool=shelf.pool, tables=shelf.tables, issuer=ISSUER, clock=clock)
    await ring.prepare()
    first = ring.active().kid
    assert await ring.turn() == []
    clock.pass_by(15 * DAY)
    assert [step.turn for step in await ring.turn()] == [Turn.PREPARE, Turn.PUBLISH]
    known = set((await reader.read()).snapshot.keys)
    assert len(known) == 2
    assert ring.active().kid == first
    clock.pass_by(10 * DAY)
    assert [step.turn for step in await ring.turn()] == [Turn.ACTIVATE]
    second = ring.active().kid
    assert {first, second} == known == set((await reader.read()).snapshot.keys)
    clock.pass_by(timedelta(minutes=15))
    assert [step.turn for step in await ring.turn()] == [Turn.RETIRE]
    assert set((await reader.read()).snapshot.keys) == {second}
    assert await _states(shelf) == ["active"]
    assert shelf.alarms == []


async def test_replicas_that_look_at_once_take_each_step_once(shelf):
    clock = HandClock()
    rings = [build_ring(shelf, clock) for _ in range(4)]
    for ring in rings:
        await ring.prepare()
    for _ in range(8):
        clock.pass_by(5 * DAY)
        await asyncio.gather(*(ring.turn() for ring in rings))
        for ring in rings:
            await ring.reload()  # as the feed has them do
        assert len({ring.active().kid for ring in rings}) == 1
        assert (await _states(shelf)).count("active") == 1
        assert len(await _states(shelf)) <= 3


async def test_a_key_that_does_not_open_is_never_published(shelf):
    clock = HandClock()
    ring = build_ring(shelf, clock)
    await ring.prepare()
    other = await token_keys.generate(shelf.kek, now=START)
    good = await token_keys.generate(shelf.kek, now=START)
    broken = replace(good, sealed_private_key=other.sealed_private_key, state="prepared", changed_at=START)
    async with shelf.pool.acquire() as connection:
        await shelf.tables.token_keys.insert(connection, broken)
    with pytest.raises(StoredDataUnreadable):
        await ring.turn()
    assert await _states(shelf) == ["active", "prepared"]


async def test_an_emergency_has_the_key_sign_that_everybody_knows_already(shelf):
    clock = HandClock()
    ring = build_ring(shelf, clock)
    reader = NewsReader(pool=shelf.pool, tables=shelf.tables, issuer=ISSUER, clock=clock)
    await ring.prepare()
    first = ring.active().kid
    clock.pass_by(15 * DAY)
    await ring.turn()
    known = set((await reader.read()).snapshot.keys)
    revocation = Revocation(id="r1", kind=RevocationKind.KEY, value=first)
    spare = await ring.new_key()
    await shelf.store.replace_token_key(first, successor=spare, revocation=revocation, now=clock.now())
    await ring.reload()
    assert {ring.active().kid} == known - {first} == set((await reader.read()).snapshot.keys)
    assert await _states(shelf) == ["active", "revoked"]
    clock.pass_by(40 * DAY)
    await ring.turn()
    assert (await _states(shelf)).count("active") == 1


async def test_a_state_that_sql_changed_is_refused(shelf):
    clock = HandClock()
    ring = build_ring(shelf, clock)
    await ring.prepare()
    clock.pass_by(15 * DAY)
    await ring.turn()
    await shelf.pool.execute(
        "UPDATE token_key SET changed_at = changed_at - interval '99 days' WHERE state = 'published'"
    )
    clock.pass_by(timedelta(minutes=1))
    signing = ring.active().kid
    with pytest.raises(AlreadyExists):  # its place is taken; somebody has to look
        await ring.turn()
    assert ring.active().kid == signing
    assert shelf.alarms
    assert {"published", "active", "retiring"} == VERIFYING
