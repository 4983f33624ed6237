"""Trust: snapshots, changes, gaps, and the feed that brings them."""

from __future__ import annotations

import queue
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from casemate.auth.v1 import trust_pb2, trust_service_pb2, trust_service_pb2_grpc
from casemate.errors import InvalidRequest, Unavailable
from casemate.gate.adapters import records
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.policy import MethodPolicy, TokenAccess
from casemate.gate.core.records import (
    Effect,
    Release,
    ReleasedVersion,
    RemovedGrant,
    RemovedSigner,
    RemovedTokenKey,
    Revocation,
    RevocationKind,
)
from casemate.gate.core.trust import TrustGap, TrustSnapshot, TrustState
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.registry import registered
from casemate.transport.server import build_server
from tests.gate.world import SetClock, TokenMint, grant

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)
WAIT_S = 10.0


def signer() -> Signer:
    key = SigningKey.generate().public
    return Signer(
        key_id=key.key_id,
        tenant="acme",
        role="supplier",
        public_key=key,
        valid_from=MOMENT,
        valid_until=MOMENT + timedelta(days=1),
        compromised_since=MOMENT + timedelta(hours=1),
    )


def release() -> Release:
    version = ReleasedVersion(number=1, manifest_sha256=b"d" * 32, signer_key_id="k", recorded_at=MOMENT)
    return Release(tenant="acme", model="digits", versions=(version,), labels={"stable": 1})


def everything(sequence: int = 1) -> TrustSnapshot:
    return TrustSnapshot.build(
        epoch="one",
        sequence=sequence,
        issuer="https://auth.casemate.internal",
        keys=[TokenMint().key, TokenMint("ES256").key],
        revocations=[
            Revocation(id=kind, kind=kind, value=f"some {kind}", not_before=MOMENT, expires_at=MOMENT)
            for kind in RevocationKind
        ],
        grants=[grant(), grant(id="no", effect=Effect.DENY, expires_at=MOMENT)],
        signers=[signer()],
        releases=[release()],
    )


def test_every_record_survives_the_wire():
    snapshot = everything()
    message = trust_service_pb2.TrustSnapshot.FromString(records.snapshot_to_message(snapshot).SerializeToString())
    assert records.snapshot_from_message(message, epoch="one", sequence=1) == snapshot


def test_every_change_survives_the_wire():
    snapshot = everything()
    changes = [
        *snapshot.keys.values(),
        *snapshot.revocations.by_id.values(),
        *snapshot.grants.by_id.values(),
        *snapshot.signers.values(),
        *snapshot.releases.values(),
        RemovedTokenKey("kid"),
        RemovedGrant("grant"),
        RemovedSigner("key id"),
    ]
    message = trust_service_pb2.TrustDelta.FromString(records.delta_to_message(changes).SerializeToString())
    assert records.delta_from_message(message) == changes


@pytest.mark.parametrize(
    "message",
    [
        trust_service_pb2.TrustChange(),
        trust_service_pb2.TrustChange(revocation=trust_pb2.Revocation(id="x", value="y")),
        trust_service_pb2.TrustChange(grant=trust_pb2.Grant(id="x")),
        trust_service_pb2.TrustChange(token_key=trust_pb2.TokenKey(kid="x", public_key=b"y")),
        trust_service_pb2.TrustChange(
            token_key=trust_pb2.TokenKey(kid="A" * 43, algorithm="EdDSA", public_key=TokenMint().der)
        ),
        trust_service_pb2.TrustChange(signer=trust_pb2.Signer(key_id="x", role=1, public_key=b"y")),
        trust_service_pb2.TrustChange(signer=trust_pb2.Signer(key_id="x")),
    ],
    ids=range(7),
)
def test_a_change_that_cannot_be_judged_is_an_error_and_never_left_out(message):
    with pytest.raises(InvalidRequest):
        records.delta_from_message(trust_service_pb2.TrustDelta(changes=[message]))


def test_a_signer_that_is_removed_is_known_no_more():
    state, before = TrustState(), everything()
    state.apply_snapshot(before)
    (key_id,) = before.signers
    state.apply_delta([RemovedSigner("another")], epoch="one", sequence=5)
    assert list(state.current.signers) == [key_id]
    state.apply_delta([RemovedSigner(key_id)], epoch="one", sequence=6)
    assert not state.current.signers


def test_changes_apply_in_order_and_leave_the_old_snapshot_alone():
    state, before = TrustState(), everything()
    state.apply_snapshot(before)
    kid, other = before.keys
    state.apply_delta(
        [RemovedTokenKey(kid), grant(verb="read"), RemovedGrant("no"), replace(release(), labels={})],
        epoch="one",
        sequence=5,
    )
    assert (list(state.current.keys), state.current.sequence) == ([other], 5)
    assert {key: each.verb for key, each in state.current.grants.by_id.items()} == {"grant-1": "read"}
    assert state.current.releases["acme", "digits"].labels == {}
    assert (len(before.keys), len(before.grants.by_id)) == (2, 2)


def test_a_gap_is_an_error_and_changes_nothing():
    state = TrustState()
    state.apply_snapshot(everything(sequence=5))
    for epoch, sequence in (("two", 6), ("one", 5), ("one", 4)):
        with pytest.raises(TrustGap):
            state.apply_delta([RemovedGrant("grant-1")], epoch=epoch, sequence=sequence)
    for epoch, sequence in (("two", 5), ("one", 6), ("one", 4)):
        with pytest.raises(TrustGap):
            state.confirm(epoch=epoch, sequence=sequence)
    assert "grant-1" in state.current.grants.by_id
    state.confirm(epoch="one", sequence=5)
    state.apply_delta([RemovedGrant("grant-1")], epoch="one", sequence=6)


def test_the_key_epoch_moves_when_a_key_goes_and_not_when_one_comes():
    state, first, second = TrustState(), TokenMint().key, TokenMint().key
    snapshots = [TrustSnapshot.build(epoch="e", sequence=1, issuer="", keys=keys) for keys in ([first], [second])]
    state.apply_snapshot(snapshots[0])
    state.apply_delta([second], epoch="e", sequence=2)
    assert state.key_epoch == 0
    state.apply_delta([RemovedTokenKey(first.kid)], epoch="e", sequence=3)
    assert state.key_epoch == 1
    state.apply_snapshot(snapshots[0])
    assert state.key_epoch == 2


def test_staleness_counts_from_the_read_and_never_goes_back():
    clock, state = SetClock(), TrustState(staleness=timedelta(seconds=300))
    assert state.staleness(clock) == timedelta.max
    policy = MethodPolicy(method="/a.B/C", access=TokenAccess("s"))
    with pytest.raises(Unavailable):
        state.require_fresh(policy, clock)
    state.heard(clock.monotonic() - 100)
    state.heard(clock.monotonic() - 200)
    assert timedelta(seconds=100) <= state.staleness(clock) < timedelta(seconds=130)
    state.require_fresh(policy, clock)
    with pytest.raises(Unavailable):
        state.require_fresh(replace(policy, sensitive=True), clock)
    clock.advance(seconds=201)
    with pytest.raises(Unavailable):
        state.require_fresh(policy, clock)


def test_subscribers_hear_of_each_change_until_they_leave():
    state, heard = TrustState(), []
    leave = state.subscribe(lambda snapshot: heard.append(snapshot.sequence))
    state.apply_snapshot(everything(1))
    state.apply_delta([], epoch="one", sequence=2)
    leave()
    leave()
    state.apply_snapshot(everything(3))
    assert heard == [1, 2]


class Watch:
    """One call of a watcher: where it wants to resume, and what it is told."""

    def __init__(self, request):
        self.resumes = (request.epoch, request.sequence)
        self.news = queue.SimpleQueue()

    def tell(self, *news):
        for each in news:
            self.news.put(each)


class ScriptedAuth(trust_service_pb2_grpc.TrustServiceServicer):
    """Says to each watcher what the test puts in."""

    def __init__(self):
        self._watches = queue.SimpleQueue()
        self.begun = []

    def WatchTrust(self, request, context):  # noqa: N802  # the protocol's name
        watch = Watch(request)
        self.begun.append(watch)
        self._watches.put(watch)
        while (news := watch.news.get()) is not None:
            if isinstance(news, grpc.StatusCode):
                context.abort(news, "")
            yield news

    def next(self) -> Watch:
        return self._watches.get(timeout=WAIT_S)


def news(snapshot: TrustSnapshot | None = None, *, epoch="one", sequence=1, age=0.0, changes=None):
    read_age = Duration()
    read_age.FromTimedelta(timedelta(seconds=age))
    message = trust_service_pb2.WatchTrustResponse(epoch=epoch, sequence=sequence, read_age=read_age)
    if snapshot is not None:
        message.snapshot.CopyFrom(records.snapshot_to_message(snapshot))
    elif changes is not None:
        message.delta.CopyFrom(records.delta_to_message(changes))
    else:
        message.heartbeat.SetInParent()
    return message


@pytest.fixture
def auth(leaf):
    scripted = ScriptedAuth()
    server = build_server(
        source=CertificateSource(leaf("service", service="auth")),
        services=[registered(trust_service_pb2_grpc.add_TrustServiceServicer_to_server, scripted)],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=timedelta(0),
    )
    server.start()
    scripted.port = server.port
    yield scripted
    for watch in scripted.begun:
        watch.tell(None)
    server.stop(timedelta(seconds=1))


@pytest.fixture
def state():
    return TrustState()


@pytest.fixture
def changed(state):
    """Set by each change; waiting for it clears it."""
    event = Event()
    state.subscribe(lambda _snapshot: event.set())

    def wait():
        assert event.wait(WAIT_S)
        event.clear()

    return wait


@pytest.fixture
def feed(auth, state, leaf):
    source = CertificateSource(leaf("service", service="datasets"))
    with RotatingChannel(target=f"127.0.0.1:{auth.port}", service_name="auth", source=source) as channel:
        quick = {"first_wait": timedelta(milliseconds=1), "longest_wait": timedelta(milliseconds=10)}
        feed = TrustFeed(channel, state, SetClock(), **quick)
        feed.start()
        yield feed
        feed.close()


def test_the_feed_applies_what_comes_and_resumes_where_it_was(auth, state, feed, changed):
    watch = auth.next()
    assert watch.resumes == ("", 0)
    watch.tell(news(everything(), age=20.0))
    assert feed.wait_ready(timedelta(seconds=WAIT_S))
    changed()
    assert timedelta(seconds=20) <= state.staleness(SetClock()) < timedelta(seconds=50)
    watch.tell(news(changes=[RemovedGrant("no")], sequence=7))
    changed()
    assert list(state.current.grants.by_id) == ["grant-1"]
    watch.tell(grpc.StatusCode.UNAVAILABLE)
    watch = auth.next()
    assert watch.resumes == ("one", 7)
    watch.tell(None)  # an end without error is no end either
    assert auth.next().resumes == ("one", 7)


@pytest.mark.parametrize(
    "odd",
    [
        news(sequence=9),
        news(epoch="two"),
        news(changes=[], epoch="two", sequence=9),
        news(changes=[], sequence=1),
        trust_service_pb2.WatchTrustResponse(epoch="one", sequence=1),
        trust_service_pb2.WatchTrustResponse(
            epoch="one",
            sequence=9,
            delta=trust_service_pb2.TrustDelta(changes=[trust_service_pb2.TrustChange()]),
        ),
    ],
    ids=range(6),
)
def test_news_that_does_not_follow_makes_the_feed_ask_for_everything(auth, state, feed, changed, odd):
    watch = auth.next()
    watch.tell(news(everything()))
    changed()
    watch.tell(odd)
    watch = auth.next()
    assert (watch.resumes, state.current.sequence) == (("", 0), 1)
    watch.tell(news(everything(sequence=9), sequence=9))
    changed()
    assert state.current.sequence == 9


def test_a_heartbeat_makes_trust_fresh_again(auth, state, feed, changed):
    watch = auth.next()
    watch.tell(news(everything(), age=250.0))
    changed()
    before = state.staleness(SetClock())
    watch.tell(news(), news(changes=[], sequence=2, age=200.0))
    changed()  # the delta's own read is old: what is fresh now, the heartbeat before it made so
    assert state.staleness(SetClock()) < before - timedelta(seconds=200)


def test_a_stream_that_is_open_and_silent_is_cut_and_one_that_speaks_is_not(auth, state, leaf, changed):
    source = CertificateSource(leaf("service", service="datasets"))
    clock = SetClock()
    with RotatingChannel(target=f"127.0.0.1:{auth.port}", service_name="auth", source=source) as channel:
        quick = {"first_wait": timedelta(milliseconds=1), "silence": timedelta(seconds=4)}
        feed = TrustFeed(channel, state, clock, **quick)
        feed.start()
        watch = auth.next()
        watch.tell(news(everything()))
        changed()
        for sequence in range(2, 8):  # six words in half of the silence each
            clock.advance(seconds=2)
            watch.tell(news(changes=[], sequence=sequence))
            changed()
        assert len(auth.begun) == 1
        clock.advance(seconds=5)  # and then none
        again = auth.next()
        assert again.resumes == ("one", 7)
        again.tell(news(changes=[], sequence=8))
        changed()
        feed.close()


def test_a_feed_without_auth_is_not_ready_and_closes(leaf, state):
    source = CertificateSource(leaf("service", service="datasets"))
    with RotatingChannel(target="127.0.0.1:1", service_name="auth", source=source) as channel:
        feed = TrustFeed(channel, state, SetClock())
        feed.start()
        assert not feed.wait_ready(timedelta(milliseconds=10))
        feed.close()
        assert not feed._thread.is_alive()
