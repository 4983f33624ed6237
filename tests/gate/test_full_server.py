"""A server that has all the calls it takes: the next one is refused as any other is, and told when to come back."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import grpc
import pytest

from casemate.errors import Reason
from casemate.gate.adapters.audit_repeats import Repeats
from casemate.transport import server as transport_server
from casemate.transport.registry import RegisteredService
from casemate.transport.status import from_rpc_error
from tests.gate.adapter_world import kind, service_leaf, trainer
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import World

__all__ = ["kind", "service_leaf", "trainer"]  # fixtures

RAW = b"as it came"


class Staying:
    """Handlers that stay until they are let go, of either server."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def wait(self):
        self.entered.release()
        assert self.go_on.wait(LIMIT_S)

    def unary(self, raw, _context):
        self.wait()
        return raw

    def stream(self, raw, _context):
        self.wait()
        yield raw

    async def unary_aio(self, raw, _context):
        await asyncio.to_thread(self.wait)
        return raw

    async def stream_aio(self, raw, _context):
        await asyncio.to_thread(self.wait)
        yield raw

    def service(self, kind):
        unary, stream = (self.unary, self.stream) if kind == "sync" else (self.unary_aio, self.stream_aio)
        handlers = {
            "Open": grpc.unary_unary_rpc_method_handler(unary),
            "Sensitive": grpc.unary_stream_rpc_method_handler(stream),
        }
        return RegisteredService("test.Echo", handlers)


@pytest.fixture
def full(kind, service_leaf, trainer, monkeypatch):
    """A server for two calls that has two, a unary one and a stream."""
    monkeypatch.setattr(transport_server, "MAXIMUM_CONCURRENT_CALLS", 2)
    staying, world = Staying(), World()
    settings = {} if kind == "sync" else {"calls": 2}
    with (
        serve(kind, world, service_leaf, services=[staying.service(kind)], **settings) as served,
        served.channel(trainer) as channel,
    ):
        metadata = bearer(world.token(trainer))
        one = channel.unary_unary("/test.Echo/Open").future(RAW, metadata=metadata, timeout=LIMIT_S)
        many = channel.unary_stream("/test.Echo/Sensitive")(RAW, metadata=metadata, timeout=LIMIT_S)
        assert all(staying.entered.acquire(timeout=LIMIT_S) for _ in range(2))
        yield staying, world, channel, metadata
        staying.go_on.set()
        assert one.result() == RAW
        assert list(many) == [RAW]


@pytest.mark.parametrize("method", ["Open", "Sensitive", "Absent"])
@pytest.mark.parametrize("stranger", [False, True])
def test_a_call_beyond_what_a_server_takes_is_told_when_to_come_back_and_is_in_the_audit(full, method, stranger):
    _staying, world, channel, metadata = full
    invoke = channel.unary_unary if method != "Sensitive" else channel.unary_stream
    call = invoke(f"/test.Echo/{method}")
    with pytest.raises(grpc.RpcError) as refused:
        list(call(RAW, metadata=() if stranger else metadata, timeout=LIMIT_S))
    error = from_rpc_error(refused.value)
    assert (refused.value.code(), error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED)
    assert error.retry_after == timedelta(seconds=1)
    [event] = world.audit.events
    assert (event.decision, event.reason, event.method) == ("denied", "SERVER_FULL", f"/test.Echo/{method}")
    assert dict(refused.value.trailing_metadata())["casemate-request-id"] == event.request_id


def test_places_of_calls_that_ended_are_taken_again_and_refusals_take_none(full):
    staying, world, channel, metadata = full
    invoke = channel.unary_unary("/test.Echo/Open")
    for _ in range(8):
        with pytest.raises(grpc.RpcError):
            invoke(RAW, metadata=metadata, timeout=LIMIT_S)
    staying.go_on.set()
    for _ in range(200):  # the end of the two is told to their peer a moment before it is counted
        try:
            assert invoke(RAW, metadata=metadata, timeout=LIMIT_S) == RAW
            break
        except grpc.RpcError:
            threading.Event().wait(0.01)
    assert [invoke(RAW, metadata=metadata, timeout=LIMIT_S) for _ in range(8)] == [RAW] * 8
    assert set(world.audit.denials) == {"SERVER_FULL"}


def test_a_flood_of_such_refusals_costs_two_lines_a_second_whatever_methods_it_names():
    world, repeats = World(), Repeats()
    for number in range(1_000):
        world.gate.overflowed(f"/test.Echo/Method{number}", request_id=f"{number:x}")
    lines = [line for event in world.audit.events for line in repeats.take(event, monotonic=0.0)]
    lines += repeats.due(monotonic=1.0)
    assert [(line["reason"], line.get("count", 1)) for line in lines] == [("SERVER_FULL", 1), ("SERVER_FULL", 999)]
