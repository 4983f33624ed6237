"""Very many records: in bounded messages, at a bounded price a change, and nothing that waits for them."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import trust_service_pb2 as feed
from casemate.clock import SystemClock
from casemate.errors import CasemateError
from casemate.gate.adapters.caller_context import bind_caller
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.adapters.records import snapshot_to_message
from casemate.gate.core.caller import Caller
from casemate.gate.core.grants import GrantIndex
from casemate.gate.core.records import Effect, Grant, Revocation, RevocationKind
from casemate.gate.core.revocations import RevocationIndex
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.options import DEFAULT_MAX_MESSAGE_BYTES
from services.auth.feed import TrustPublisher
from services.auth.records import Tenant
from services.auth.servicer_trust import TrustServicer
from services.auth.snapshot_parts import PART_BYTES, parts_of
from services.auth.store.changes import EventKind, begin_change
from services.auth.store.news import NewsReader
from services.auth.store.table import Alarms
from tests.services.auth.world import SOON, build_world, grant_message, open_shelf
from tests.support.authority import TRUST_DOMAIN

NOW = datetime(2026, 5, 4, tzinfo=UTC)
CLOCK = SystemClock()
MANY = 100_000
"""Grants; eight megabytes: twice what a message holds."""
INFERENCE = Caller(
    tenant=None,
    client_id=None,
    subject=None,
    spiffe_id=f"spiffe://{TRUST_DOMAIN}/svc/inference",
    scopes=frozenset(),
    token_id=None,
    certificate_thumbprint="t",
    expires_at=NOW,
    request_id="r",
)


def grant(number, **change):
    made = Grant(
        id=f"grant-{number:024d}",
        tenant="acme",
        caller=f"t/acme/caller-{number}",
        verb="infer",
        resource=f"model/model-{number}",
    )
    return replace(made, **change)


def snapshot(count):
    return TrustSnapshot.build(
        epoch="e",
        sequence=1,
        issuer="https://auth.casemate.internal",
        grants=[grant(number) for number in range(count)],
        revocations=[Revocation(id=f"r-{n}", kind=RevocationKind.TOKEN, value=f"t-{n}") for n in range(count // 10)],
    )


def test_a_large_snapshot_is_told_in_parts_that_make_it_whole_again():
    whole = snapshot_to_message(snapshot(2_000))
    parts = list(parts_of(whole, limit=10_000))
    assert len(parts) > 10
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert max(part.ByteSize() for part in parts) < 11_000
    gathered = feed.TrustSnapshot()
    for part in parts:
        assert part.issuer == whole.issuer
        gathered.MergeFrom(part)
    gathered.more = False
    assert gathered == whole


def test_a_small_snapshot_is_one_message_as_it_always_was():
    whole = snapshot_to_message(snapshot(10))
    assert list(parts_of(whole)) == [whole]
    assert PART_BYTES * 2 < DEFAULT_MAX_MESSAGE_BYTES


class Watch:
    """A channel whose one rpc answers what it was given."""

    def __init__(self, answers):
        self.answers = answers

    def unary_stream(self, *_path, **_serializers):
        return lambda _request: iter(self.answers)


def _followed(*parts, sequences=None):
    """A trust state after these parts came, and what the feed made of them."""
    state = TrustState()
    follower = TrustFeed(Watch([]), state, SystemClock())
    for place, part in enumerate(parts):
        sequence = sequences[place] if sequences else 7
        news = feed.WatchTrustResponse(epoch="e", sequence=sequence)
        news.snapshot.CopyFrom(part)
        follower._apply(news)  # the thread around it is another test's
        yield state


def test_nothing_of_a_snapshot_counts_before_its_last_part():
    whole = snapshot_to_message(snapshot(500))
    parts = list(parts_of(whole, limit=10_000))
    *before, last = [(state.current.sequence, len(state.current.grants.by_id)) for state in _followed(*parts)]
    assert set(before) == {(0, 0)}
    assert last == (7, 500)


def test_parts_of_two_snapshots_are_never_put_together():
    parts = list(parts_of(snapshot_to_message(snapshot(500)), limit=10_000))
    follower = _followed(*parts[:2], sequences=(7, 8))
    assert next(follower).current.sequence == 0
    with pytest.raises(CasemateError):
        next(follower)


@pytest.mark.parametrize("seed", range(5))
def test_an_index_that_was_changed_step_by_step_says_what_one_made_at_once_says(seed):
    """Names and patterns collide on purpose."""
    dice = random.Random(seed)  # noqa: S311  # a walk, not a secret
    index, held = GrantIndex.empty(), {}
    for _ in range(200):
        name = f"grant-{dice.randrange(12)}"
        if name in held and dice.random() < 0.4:
            del held[name]
            index = index.without_grant(name)
        else:
            held[name] = Grant(
                id=name,
                tenant=dice.choice(("acme", "umbrella")),
                caller=dice.choice(("t/acme/one", "t/acme/*", "t/umbrella/one")),
                verb=dice.choice(("infer", "read", "*")),
                resource=dice.choice(("model/digits", "model/*", "dataset/digits")),
                effect=dice.choice((Effect.ALLOW, Effect.DENY)),
            )
            index = index.with_grant(held[name])
        assert index.by_id == held
        assert _decisions(index) == _decisions(GrantIndex.of(held.values()))
    for name in list(held):
        index = index.without_grant(name)
    assert index == GrantIndex.empty()
    assert index.without_grant("nobody") is index


def _decisions(index):
    found = []
    for tenant in ("acme", "umbrella"):
        for path in ("t/acme/one", "t/acme/two", "t/umbrella/one"):
            for verb in ("infer", "read"):
                for resource in ("model/digits", "model/faces", "dataset/digits"):
                    try:
                        index.authorize(tenant=tenant, caller_path=path, verb=verb, resource=resource, now=NOW)
                    except CasemateError:
                        continue
                    found.append((tenant, path, verb, resource))
    return found


def test_revocations_one_by_one_say_what_all_at_once_say():
    revocations = [
        Revocation(id=f"r-{number % 7}", kind=kind, value=f"v-{number % 3}", expires_at=NOW + timedelta(seconds=number))
        for number, kind in enumerate(list(RevocationKind) * 3)
    ]
    index = RevocationIndex.empty()
    for place, revocation in enumerate(revocations, start=1):
        index = index.with_revocation(revocation)
        assert index == RevocationIndex.of(revocations[:place])


async def _fill(database, state, count):
    """Grants with good MACs, written in one transaction."""
    async with open_shelf(database, state) as shelf:
        await shelf.store.add_tenant(Tenant(name="acme", created_at=NOW))
        table = shelf.tables.grants
        rows = []
        for number in range(count):
            values = table._layout.to_columns(grant(number))  # a hundred thousand inserts take minutes
            rows.append((*values, table._mac(values)))  # as above
        async with shelf.pool.acquire() as connection, begin_change(connection) as change:
            await connection.copy_records_to_table("access_grant", records=rows)
            await change.tell(EventKind.GRANT, grant(0).id)


async def _followed_by(world, service):
    """How many grants a service's own feed finds; tokens are issued all the while."""
    source = CertificateSource(world.leaf("service", service=service))
    channel = RotatingChannel(target=f"127.0.0.1:{world.running.port}", service_name="auth", source=source)
    state = TrustState()
    follower = TrustFeed(channel, state, CLOCK)
    operator = world.operator()
    follower.start()
    try:
        async with asyncio.timeout(SOON * 30):  # a hundred thousand rows are verified first
            while not state.current.sequence:
                await operator.token("auth")
        return len(state.current.grants.by_id)
    finally:
        follower.close()
        channel.close()
        source.close()


@pytest.mark.long
async def test_a_hundred_thousand_grants_reach_a_follower_and_a_change_of_one_costs_one(database, leaf, tmp_path):
    await _fill(database, tmp_path, MANY)
    async with build_world(database, leaf, tmp_path, heartbeat=timedelta(seconds=2)) as world:
        assert await _followed_by(world, "inference") == MANY
        operator = world.operator()
        watch = world.service("inference").watch(feed.WatchTrustRequest())
        parts = [await watch.read()]
        while parts[-1].snapshot.more:
            parts.append(await watch.read())
        assert len(parts) >= MANY * 80 // PART_BYTES
        assert max(part.ByteSize() for part in parts) < DEFAULT_MAX_MESSAGE_BYTES // 2
        message = grant_message("acme", "t/acme/one-more")
        created = await operator.administer("CreateGrant", admin.CreateGrantRequest(grant=message))
        async with asyncio.timeout(SOON):
            while not [change for change in (await watch.read()).delta.changes if change.grant.id == created.id]:
                pass


async def test_more_changes_at_once_than_a_message_holds_are_told_as_everything_in_parts(shelf):
    await shelf.store.add_tenant(Tenant(name="acme", created_at=NOW))
    reader = NewsReader(pool=shelf.pool, tables=shelf.tables, issuer="https://auth.casemate.internal", clock=CLOCK)
    alarms = Alarms(count=lambda: shelf.alarms.append("alarm"))
    publisher = TrustPublisher(
        reader=reader, state=TrustState(), alarms=alarms, after_change=_nothing, looked=lambda _: None, clock=CLOCK
    )
    start = await reader.read()
    for number in range(20):
        await shelf.store.add_grant(grant(number))
    bind_caller(INFERENCE)
    follower = TrustFeed(Watch([]), TrustState(), CLOCK)
    follower._state.apply_snapshot(start.snapshot)  # where it left off
    for limit, kinds in ((100_000, {"delta"}), (1_000, {"snapshot"})):
        servicer = TrustServicer(publisher=publisher, clock=CLOCK, part_bytes=limit)
        request = feed.WatchTrustRequest(epoch=start.epoch, sequence=start.sequence)
        told, sizes = [], []
        async with aclosing(servicer.WatchTrust(request, None)) as watch:
            async for message in watch:
                told.append(message)
                sizes.append(message.ByteSize())
                follower._apply(message)  # the thread around it is another test's
                if not message.snapshot.more:
                    break
        assert {message.WhichOneof("news") for message in told} == kinds
        assert len(follower._state.current.grants.by_id) == 20  # as above
    assert len(told) > 1
    assert max(sizes) < 1_200


async def _nothing():
    pass
