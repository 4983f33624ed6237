"""Streams, shares and first uses, on both servers."""

from __future__ import annotations

import threading
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
from casemate.gate.adapters import asynchronous, early_end, synchronous
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.records import RevocationKind
from casemate.transport.status import from_rpc_error
from tests.gate.adapter_world import (
    DIGITS,
    UNAUTHENTICATED,
    Talk,
    channel,
    kind,
    mallory,
    refusal,
    served,
    service_leaf,
    trainer,
)
from tests.gate.served import ABORTS, LIMIT_S, PARSED, RAISES, serve
from tests.gate.world import DOMAIN, SetClock, World, bearer, grant, thumbprint_of
from tests.support.authority import OddProfile

__all__ = ["channel", "kind", "mallory", "served", "service_leaf", "trainer"]  # fixtures


def test_a_stream_that_names_another_resource_needs_its_grant(served, channel, trainer):
    token = served.world.token(trainer)
    talk = Talk(served, channel, token)
    assert talk.say() == PARSED
    assert talk.say(dataset="") == PARSED  # names nothing new
    assert refusal(talk.say, dataset="faces")[0] is grpc.StatusCode.NOT_FOUND
    served.world.publish(grants=(grant(), grant(id="faces", resource="dataset/faces")))
    talk = Talk(served, channel, token)
    assert [talk.say(), talk.say(dataset="faces"), talk.end()] == [PARSED, PARSED, []]


def test_a_stream_whose_first_message_names_nothing_is_refused(served, channel, trainer):
    talk = Talk(served, channel, served.world.token(trainer))
    assert refusal(talk.say, dataset="")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert Talk(served, channel, served.world.token(trainer)).say() == PARSED


def end_of_right(world, leaf, ending):  # noqa: PLR0911  # a table, read row by row
    """Takes one right of the token `the-token` away; what its stream has to end by."""
    clock = world.clock
    if ending == "revoked":
        world.revoke(RevocationKind.TOKEN, "the-token")
        return UNAUTHENTICATED, Reason.TOKEN_REVOKED
    if ending == "certificate":
        world.revoke(RevocationKind.CERTIFICATE, thumbprint_of(leaf))
        return UNAUTHENTICATED, Reason.PEER_REFUSED
    if ending == "expired":
        clock.advance(minutes=5)
        world.hear()
        return UNAUTHENTICATED, Reason.TOKEN_EXPIRED
    if ending == "notAfter":
        clock.advance(seconds=60)  # the token has four minutes left
        world.hear()
        return UNAUTHENTICATED, Reason.TOKEN_EXPIRED
    if ending == "key":
        world.publish(keys=())
        return UNAUTHENTICATED, Reason.TOKEN_REVOKED
    if ending == "grant":
        world.publish(grants=())
        return grpc.StatusCode.NOT_FOUND, Reason.RESOURCE_NOT_FOUND
    clock.wall_offset = -timedelta(seconds=301)
    clock.advance(seconds=301)
    return grpc.StatusCode.UNAVAILABLE, Reason.TRUST_STALE


ENDINGS = ["revoked", "expired", "notAfter", "certificate", "key", "grant", "stale"]


@pytest.fixture(scope="module")
def short(leaf):
    """A certificate that ends before its token does: by the clock of the gate, so that nobody waits for it."""
    return leaf("profile", profile=OddProfile(uris=(f"spiffe://{DOMAIN}/t/acme/trainer",), end=timedelta(seconds=50)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_silent_stream_ends_when_its_right_does(served, trainer, short, ending):
    world, holder = served.world, short if ending == "notAfter" else trainer
    with served.channel(holder) as channel:
        talk = Talk(served, channel, world.token(holder, jti="the-token"))
        assert talk.say() == PARSED
        world.publish()  # news that does not concern it
        assert talk.say() == PARSED
        expected = end_of_right(world, holder, ending)
        assert talk.refused() == expected


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stream_whose_handler_only_waits_ends_too_and_says_why(served, trainer, short, ending):
    """The handler neither reads nor answers: on the synchronous server nothing can wake it, and its call ends."""
    world, holder = served.world, short if ending == "notAfter" else trainer
    with served.channel(holder) as channel:
        stream = channel.unary_stream("/test.Echo/UnaryStream")(
            DIGITS.SerializeToString(), metadata=bearer(world.token(holder, jti="the-token")), timeout=LIMIT_S
        )
        next(stream)
        world.publish()
        expected = end_of_right(world, holder, ending)
        assert refusal(next, stream) == expected


def test_a_handler_that_only_waits_is_cut_where_grpcio_cannot_say_why(service_leaf, trainer, monkeypatch):
    """As in a release of grpcio that lacks what tells, or what tells with a reset too."""
    for missing, code in (("_abort", UNAUTHENTICATED), ("_CODES", grpc.StatusCode.CANCELLED)):
        monkeypatch.setattr(early_end, missing, None)
        with serve("sync", World(), service_leaf) as served, served.channel(trainer) as channel:
            stream = channel.unary_stream("/test.Echo/UnaryStream")(
                DIGITS.SerializeToString(), metadata=bearer(served.world.token(trainer, jti="it")), timeout=LIMIT_S
            )
            next(stream)
            served.world.revoke(RevocationKind.TOKEN, "it")
            with pytest.raises(grpc.RpcError) as ended:
                next(stream)
            assert ended.value.code() is code


def test_streams_are_looked_at_often_enough_to_end_within_a_second():
    """By what is set: a look every quarter of a second, and on the synchronous server half a second to tell."""
    for every in (asynchronous.RECHECK_EVERY, synchronous.RECHECK_EVERY):
        assert every <= timedelta(milliseconds=250)
    assert 2 * synchronous.RECHECK_EVERY.total_seconds() + synchronous._CUT_AFTER_S <= 1


def test_a_stream_on_which_nothing_comes_ends_and_one_that_has_begun_may_pause(kind, service_leaf, trainer):
    with serve(kind, World(), service_leaf, body_within=timedelta(milliseconds=150)) as served:
        token = served.world.token(trainer)
        with served.channel(trainer) as channel:
            begun = Talk(served, channel, token)
            assert begun.say() == PARSED
            silent = Talk(served, channel, token)
            assert silent.refused() == (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED)
            assert [begun.say(), begun.end()] == [PARSED, []]


def test_places_come_back_after_calls_of_every_end(served, channel, trainer):
    world = served.world
    token = world.token(trainer)
    served.call(channel, token=token)
    for version in (RAISES, ABORTS):
        with pytest.raises(grpc.RpcError):
            served.call(channel, token=token, request=GetVersionRequest(dataset="digits", version=version))
    Talk(served, channel, token).end()
    served.call(channel, "Peer")
    served.call(channel, token=token)
    assert world.gate._quota.running <= 1  # the last call may still be on its way out


def test_health_watch_needs_a_certificate_alone(served, channel):
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )(b"", timeout=LIMIT_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_a_caller_beyond_its_share_is_refused_at_headers_and_others_are_not(kind, service_leaf, trainer):
    clock = SetClock()
    world = World(quota=LocalQuota(clock=clock, shares=Shares(caller_concurrency=1)))
    with serve(kind, world, service_leaf) as served, served.channel(trainer) as channel:
        token, other = world.token(trainer), world.token(trainer, client_id="another")
        talk = Talk(served, channel, token)
        talk.say()
        exhausted = (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED)
        assert refusal(served.call, channel, token=token) == exhausted
        assert served.call(channel, token=other).version == PARSED
        talk.end()


def test_streams_leave_threads_to_single_calls_and_their_places_come_back(service_leaf, trainer):
    with serve("sync", World(), service_leaf, streams=3) as served, served.channel(trainer) as channel:
        token = served.world.token(trainer)
        talks = [Talk(served, channel, token) for _ in range(2)]
        assert [talk.say() for talk in talks] == [PARSED, PARSED]
        one_more = Talk(served, channel, token)
        with pytest.raises(grpc.RpcError) as refused:
            one_more.say()
        error = from_rpc_error(refused.value)
        assert (error.reason, error.retry_after) == (Reason.RATE_LIMITED, timedelta(seconds=1))
        assert served.call(channel, token=token).version == PARSED
        for talk in talks:
            talk.end()
        for _ in range(200):  # its place comes back a moment after its last word
            try:
                again = Talk(served, channel, token)
                assert again.say() == PARSED
                break
            except grpc.RpcError:
                threading.Event().wait(0.05)
        else:
            pytest.fail("no place came back")
        again.end()


def test_streams_that_one_tenant_keeps_open_leave_places_to_another(service_leaf, trainer, leaf):
    """Each has said one good word, so nothing ends them before their token does."""
    theirs = leaf("client", tenant="globex", name="squatter")
    with serve("sync", World(), service_leaf, streams=4, threads=8) as served:
        world = served.world
        world.publish(grants=(grant(), grant(id="g2", tenant="globex", caller="t/globex/*")))
        with served.channel(theirs) as squatter, served.channel(trainer) as quiet:
            text = world.token(theirs, tenant="globex")
            squatting = [Talk(served, squatter, text) for _ in range(3)]
            assert [talk.say() for talk in squatting] == [PARSED] * 3
            other = world.token(theirs, tenant="globex", client_id="another")  # of the same tenant
            one_more = Talk(served, squatter, other)
            assert refusal(one_more.say) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED)
            good = Talk(served, quiet, world.token(trainer))
            assert [good.say(), good.end()] == [PARSED, []]
            for talk in squatting:
                talk.end()


def test_an_aio_handler_that_reads_and_writes_by_its_context_gets_judged_messages(service_leaf, trainer):
    world = World()
    with serve("aio", world, service_leaf) as served, served.channel(trainer) as channel:
        talk = Talk(served, channel, world.token(trainer), method="ByContext")
        assert [talk.say(version=4), talk.say(version=5)] == [4, 5]
        assert refusal(talk.say, dataset="faces")[0] is grpc.StatusCode.NOT_FOUND
        talk = Talk(served, channel, world.token(trainer), method="ByContext")
        assert [talk.say(version=6), talk.end()] == [6, []]


def test_a_first_use_by_many_at_once_is_served_to_all(served, channel, trainer):
    token = served.world.token(trainer)
    invoke = channel.unary_unary("/test.Echo/Unary")
    calls = [invoke.future(DIGITS.SerializeToString(), metadata=bearer(token), timeout=LIMIT_S) for _ in range(50)]
    assert all(call.code() is grpc.StatusCode.OK for call in calls)
    assert len(served.world.cache) == 1
