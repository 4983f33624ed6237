"""Single calls whose right ends between their headers and their handler, and refusals that adapters decide."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import grpc
import pytest

from casemate.errors import Reason
from casemate.gate.core.gate import MAX_RESOURCE
from casemate.gate.core.records import RevocationKind
from casemate.transport.registry import RegisteredService
from casemate.transport.status import from_rpc_error
from tests.gate.adapter_world import (
    DIGITS,
    UNAUTHENTICATED,
    Talk,
    channel,
    judged,
    kind,
    refusal,
    served,
    service_leaf,
    trainer,
)
from tests.gate.served import LIMIT_S, PARSED, GetVersionRequest, serve
from tests.gate.test_adapters_streams import ENDINGS, end_of_right, short
from tests.gate.world import World, bearer, grant

__all__ = ["channel", "kind", "served", "service_leaf", "short", "trainer"]  # fixtures


def until(happened):
    for _ in range(int(LIMIT_S * 100)):
        if happened():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


@pytest.mark.parametrize("ending", [None, *ENDINGS])
@pytest.mark.parametrize("method", ["Unary", "UnaryStream"])
def test_a_call_that_waits_for_its_body_does_not_outlive_its_right(kind, service_leaf, request, method, ending):
    world, arrives = World(), threading.Event()
    holder = request.getfixturevalue("short" if ending == "notAfter" else "trainer")

    def late():
        arrives.wait(LIMIT_S)
        yield DIGITS.SerializeToString()

    running = serve(kind, world, service_leaf, body_within=timedelta(days=1))
    with running as served, served.channel(holder) as channel:
        call = channel.stream_stream(f"/test.Echo/{method}")(
            late(), metadata=bearer(world.token(holder, jti="the-token")), timeout=LIMIT_S
        )
        until(lambda: world.gate._quota.running == 1)  # its headers were judged
        if ending is None:
            world.publish()  # news that does not concern it
            arrives.set()
            assert b"t/acme/trainer" in next(call)
            call.cancel()
            return
        expected = end_of_right(world, holder, ending)
        arrives.set()
        code, reason = refusal(next, call)
        assert code is expected[0]
        assert reason is expected[1] or (ending == "notAfter" and reason is Reason.PEER_REFUSED)  # bound after it ended
        assert served.echo.entered == []
        assert len(world.audit.denials) == 1


def test_a_call_that_waits_its_turn_does_not_outlive_its_right(service_leaf, trainer):
    entered, leave = [], asyncio.Event()

    async def stay(request, _context):
        entered.append(request)
        if request == b"stay":
            await leave.wait()
        return request

    service = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(stay)})
    world = World()
    running = serve("aio", world, service_leaf, services=[service], at_once=2)
    with running as served, served.channel(trainer) as channel:
        ask = channel.unary_unary("/test.Echo/Open")
        first = ask.future(b"stay", metadata=bearer(world.token(trainer)), timeout=LIMIT_S)
        until(lambda: entered)
        revoked, good = (
            ask.future(name, metadata=bearer(world.token(trainer, jti=name.decode())), timeout=LIMIT_S)
            for name in (b"revoked", b"good")
        )
        until(lambda: world.gate._quota.running == 3)
        world.revoke(RevocationKind.TOKEN, "revoked")
        first.cancel()
        assert good.result() == b"good"
        assert judged(revoked.exception()) == (UNAUTHENTICATED, Reason.TOKEN_REVOKED)
        assert entered == [b"stay", b"good"]


def test_a_name_that_is_too_long_is_refused_before_anything_keeps_it(served, channel, trainer):
    world = served.world
    world.publish(grants=(grant(resource="dataset/*"),))
    token, room = world.token(trainer), MAX_RESOURCE - len("dataset/")
    for name in ("a" * room, "é" * (room // 2)):
        assert served.call(channel, token=token, request=GetVersionRequest(dataset=name, version=PARSED))
    kept = len(world.trust.current.grants._found)
    for name in ("a" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(grpc.RpcError) as refused:
            served.call(channel, token=token, request=GetVersionRequest(dataset=name, version=PARSED))
        error = from_rpc_error(refused.value)
        assert judged(refused.value) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD)
        assert [violation.field for violation in error.violations] == ["dataset"]
    assert len(world.trust.current.grants._found) == kept
    assert world.audit.denials == ["INVALID_FIELD"] * 2
    assert all(event.resource is None for event in world.audit.events)


def test_refusals_of_messages_are_told_to_the_audit_once_each(served, channel, trainer):
    world = served.world
    token = world.token(trainer)
    with pytest.raises(grpc.RpcError):
        served.call(channel, token=token, raw=b"\xff\xff\xff")
    assert world.audit.denials == ["INVALID_FIELD"]
    with pytest.raises(grpc.RpcError):
        served.call(channel, token=token, request=GetVersionRequest())
    assert world.audit.denials == ["INVALID_FIELD"] * 2
    for method in ("StreamUnary", "StreamStream"):
        garbage = channel.stream_stream(f"/test.Echo/{method}")(
            iter([b"\xff\xff\xff"]), metadata=bearer(token), timeout=LIMIT_S
        )
        with pytest.raises(grpc.RpcError):
            next(garbage)
    assert world.audit.denials == ["INVALID_FIELD"] * 4
    assert served.call(channel, token=token).version == PARSED
    assert len(world.audit.events) == 4


def test_a_body_that_does_not_arrive_is_told_to_the_audit(kind, service_leaf, trainer):
    never = threading.Event()

    def nothing():
        never.wait(LIMIT_S)
        yield b""

    world = World()
    running = serve(kind, world, service_leaf, body_within=timedelta(milliseconds=100))
    with running as served, served.channel(trainer) as channel:
        call = channel.stream_unary("/test.Echo/Unary")
        with pytest.raises(grpc.RpcError):
            call(nothing(), metadata=bearer(world.token(trainer)), timeout=LIMIT_S)
        never.set()
        assert world.audit.denials == ["DEADLINE_EXCEEDED"]


def test_a_stream_without_a_place_is_told_to_the_audit(service_leaf, trainer):
    world = World()
    with serve("sync", world, service_leaf, streams=1) as served, served.channel(trainer) as channel:
        talk = Talk(served, channel, world.token(trainer))
        assert talk.say() == PARSED
        assert refusal(Talk(served, channel, world.token(trainer)).say)[1] is Reason.RATE_LIMITED
        assert world.audit.denials == ["RATE_LIMITED"]
        talk.end()
