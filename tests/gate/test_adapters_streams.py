"""Streams, shares and first uses, on both servers."""

from __future__ import annotations

import threading
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
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
from tests.gate.world import SetClock, World, bearer, grant, thumbprint_of

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


@pytest.mark.parametrize("ending", ["revoked", "expired", "certificate", "key", "grant", "stale"])
def test_a_silent_stream_ends_when_its_right_does(served, channel, trainer, ending):
    world = served.world
    talk = Talk(served, channel, world.token(trainer, jti="the-token"))
    assert talk.say() == PARSED
    world.publish()  # news that does not concern it
    assert talk.say() == PARSED
    expected = UNAUTHENTICATED
    if ending == "revoked":
        world.revoke(RevocationKind.TOKEN, "the-token")
    elif ending == "certificate":
        world.revoke(RevocationKind.CERTIFICATE, thumbprint_of(trainer))
    elif ending == "expired":
        world.clock.advance(minutes=5)
        world.hear()
    elif ending == "key":
        world.publish(keys=())
    elif ending == "grant":
        world.publish(grants=())
        expected = grpc.StatusCode.NOT_FOUND
    else:
        world.clock.wall_offset = -timedelta(seconds=301)
        world.clock.advance(seconds=301)
        expected = grpc.StatusCode.UNAVAILABLE
    assert talk.refused()[0] is expected


def test_a_handler_that_only_waits_is_ended_too(kind, served, channel, trainer):
    world = served.world
    stream = channel.unary_stream("/test.Echo/UnaryStream")(
        DIGITS.SerializeToString(), metadata=bearer(world.token(trainer, jti="the-token")), timeout=LIMIT_S
    )
    next(stream)
    world.revoke(RevocationKind.TOKEN, "the-token")
    with pytest.raises(grpc.RpcError) as ended:
        next(stream)
    # The synchronous server cannot wake a handler that neither reads nor answers; its call is cut.
    assert ended.value.code() is (grpc.StatusCode.CANCELLED if kind == "sync" else UNAUTHENTICATED)


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


def test_health_watch_passes_unwrapped(served, channel):
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
    with serve("sync", World(), service_leaf, streams=2) as served, served.channel(trainer) as channel:
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
