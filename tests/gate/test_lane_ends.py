"""A server with a lane ends within its grace, and no handler keeps what the server needs."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.transport import server as transport_server
from casemate.transport.registry import LATER, RegisteredService
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import World

RAW = b"as it came"


def service_of(handler: Any) -> RegisteredService:
    return RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(handler)})


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("outstays", [True, False])
def test_a_handler_that_outstays_the_grace_loses_its_call_and_does_not_hold_up_the_end(leaf, lane, outstays):
    began, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def staying(raw: bytes, context: Any) -> bytes:
        began.set()
        go_on.wait(2 * LIMIT_S)
        assert context.is_active() is not outstays
        done.set()
        return raw

    trainer = leaf("client", tenant="acme", name="trainer")
    world, service = World(), service_of(staying)
    with (
        serve("sync", world, leaf("service", service="datasets"), services=[service], lane=lane) as served,
        served.channel(trainer) as channel,
    ):
        call = channel.unary_unary("/test.Echo/Open").future(
            RAW, metadata=bearer(world.token(trainer)), timeout=2 * LIMIT_S
        )
        assert began.wait(LIMIT_S)
        grace = timedelta(seconds=0.1 if outstays else LIMIT_S)
        ending = threading.Thread(target=served.stop, args=(grace,), daemon=True)
        ending.start()
        if outstays:
            ending.join(LIMIT_S)
            assert not ending.is_alive()  # while its handler runs
            assert not done.is_set()
        go_on.set()
        assert done.wait(LIMIT_S)
        ending.join(LIMIT_S)
        assert not ending.is_alive()
        assert call.code() is (grpc.StatusCode.UNAVAILABLE if outstays else grpc.StatusCode.OK)


@pytest.mark.parametrize("outstays", [True, False])
def test_an_answer_that_is_owed_by_nobodys_thread_does_not_hold_up_the_end(leaf, outstays):
    """Its handler returned on the serving thread, and whoever was to answer does not."""
    began, owed = threading.Event(), []

    def later(raw: bytes, context: Any) -> object:
        owed.append(lambda: context.conclude(lambda: raw))
        began.set()
        return LATER

    trainer = leaf("client", tenant="acme", name="trainer")
    handler = grpc.unary_unary_rpc_method_handler(later)
    service = RegisteredService("test.Echo", {"Open": handler}, {"Open": lambda _caller, _message, _context: later})
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        call = channel.unary_unary("/test.Echo/Open").future(
            RAW, metadata=bearer(served.world.token(trainer)), timeout=2 * LIMIT_S
        )
        assert began.wait(LIMIT_S)
        grace = timedelta(seconds=0.1 if outstays else LIMIT_S)
        ending = threading.Thread(target=served.stop, args=(grace,), daemon=True)
        ending.start()
        if not outstays:
            owed[0]()
        ending.join(LIMIT_S)
        assert not ending.is_alive()
        assert call.code() is (grpc.StatusCode.UNAVAILABLE if outstays else grpc.StatusCode.OK)


def no_metadata_and_abort(context: Any) -> None:
    context.set_trailing_metadata(5)
    context.abort(grpc.StatusCode.NOT_FOUND, "its own words")


ODD = {
    "compression": lambda context: context.set_compression("no such"),
    "initial metadata": lambda context: context.send_initial_metadata(5),
    "trailing metadata": lambda context: context.set_trailing_metadata(5),
    "an entry of trailing metadata": lambda context: context.set_trailing_metadata((("key", 5),)),
    "a code": lambda context: context.set_code([]),
    "metadata of an abort": no_metadata_and_abort,
}


@pytest.mark.parametrize("set_odd", ODD.values(), ids=ODD)
def test_what_a_handler_set_and_cannot_be_sent_ends_its_call_and_leaves_nothing_behind(leaf, set_odd):
    def odd(raw: bytes, context: Any) -> bytes:
        if raw != RAW:
            set_odd(context)
        return raw

    trainer = leaf("client", tenant="acme", name="trainer")
    world, service = World(), service_of(odd)
    with (
        serve("sync", world, leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        invoke, token = channel.unary_unary("/test.Echo/Open"), bearer(world.token(trainer))
        with pytest.raises(grpc.RpcError) as ended:
            invoke(b"odd", metadata=token, timeout=LIMIT_S)
        assert ended.value.code() is grpc.StatusCode.INTERNAL
        assert invoke(RAW, metadata=token, timeout=LIMIT_S) == RAW
        assert served.world.gate._quota.running == 0
        ending = threading.Thread(target=served.stop, args=(timedelta(seconds=0.1),), daemon=True)
        ending.start()
        ending.join(LIMIT_S)
        assert not ending.is_alive()


def test_a_peer_that_leaves_before_its_message_is_no_denial_and_one_that_sends_none_is(leaf):
    """On the lane. grpcio's own way takes the first for the second now and then: whichever it hears of first."""
    trainer = leaf("client", tenant="acme", name="trainer")
    world, ended = World(), threading.Semaphore(0)
    finish = world.gate.finish

    def finishing(admission: Any, code: str) -> None:
        finish(admission, code)
        ended.release()

    world.gate.finish = finishing
    service = service_of(lambda raw, _context: raw)
    with (
        serve("sync", world, leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        invoke, token = channel.stream_unary("/test.Echo/Open"), bearer(world.token(trainer))
        with pytest.raises(grpc.RpcError) as none:
            invoke(iter(()), metadata=token, timeout=LIMIT_S)
        assert none.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert ended.acquire(timeout=LIMIT_S)
        assert world.audit.denials == ["INVALID_FIELD"]
        silent = threading.Event()
        with pytest.raises(grpc.RpcError) as left:
            invoke(iter(lambda: silent.wait(LIMIT_S) or RAW, None), metadata=token, timeout=0.2)
        assert left.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert ended.acquire(timeout=LIMIT_S)
        silent.set()
        assert world.audit.denials == ["INVALID_FIELD"]
        assert world.gate._quota.running == 0


def test_a_server_takes_so_many_calls_at_once_and_the_places_of_those_that_ended_again(leaf, monkeypatch):
    monkeypatch.setattr(transport_server, "MAXIMUM_CONCURRENT_CALLS", 2)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def staying(raw: bytes, _context: Any) -> bytes:
        entered.release()
        go_on.wait(LIMIT_S)
        return raw

    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service_of(staying)]) as served,
        served.channel(trainer) as channel,
    ):
        invoke, token = channel.unary_unary("/test.Echo/Open"), bearer(served.world.token(trainer))
        calls = [invoke.future(RAW, metadata=token, timeout=LIMIT_S) for _ in range(2)]
        assert all(entered.acquire(timeout=LIMIT_S) for _ in calls)
        with pytest.raises(grpc.RpcError) as full:
            invoke(RAW, metadata=token, timeout=LIMIT_S)
        assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        go_on.set()
        assert [call.result() for call in calls] == [RAW] * 2
        assert [invoke(RAW, metadata=token, timeout=LIMIT_S) for _ in range(4)] == [RAW] * 4


@pytest.mark.parametrize("raw", [b"\xff\xff", b""])
def test_bytes_that_are_no_message_are_audited_once_as_a_denial(leaf, raw):
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: RAW, GetVersionRequest.FromString)
    service = RegisteredService("test.Echo", {"Open": handler})
    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        token = bearer(served.world.token(trainer))
        call = channel.unary_unary("/test.Echo/Open").future(raw, metadata=token, timeout=LIMIT_S)
        assert call.code().name == ("INVALID_ARGUMENT" if raw else "OK")
        assert served.world.audit.denials == (["INVALID_FIELD"] if raw else [])


def test_what_a_handler_sets_in_its_context_is_not_the_next_calls(leaf):
    mark: ContextVar[bytes] = ContextVar("mark", default=b"nothing")

    def marking(raw: bytes, _context: Any) -> bytes:
        found = mark.get()
        mark.set(raw)
        return found

    handler = grpc.unary_unary_rpc_method_handler(marking)
    at_once = {"Open": lambda _caller, message, _context: marking if message != b"thread" else None}
    service = RegisteredService("test.Echo", {"Open": handler}, at_once)
    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service], threads=1) as served,
        served.channel(trainer) as channel,
    ):
        invoke, token = channel.unary_unary("/test.Echo/Open"), bearer(served.world.token(trainer))
        for raw in (b"here", b"here", b"thread", b"thread"):
            assert invoke(raw, metadata=token, timeout=LIMIT_S) == b"nothing"
