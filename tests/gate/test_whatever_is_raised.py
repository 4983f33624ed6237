"""Whatever a handler raises, its call is answered, noted, and gives its places back; and the next one is served."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
from casemate.transport.registry import RegisteredService
from tests.gate.adapter_world import judged, kind, service_leaf, trainer
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import World

__all__ = ["kind", "service_leaf", "trainer"]  # fixtures

RAW = b"as it came"
SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
SECRET = "hunter2"


class Panic(BaseException):
    """As compiled code raises it: no Exception."""


class Raising:
    """Handlers of each shape that raise what they are told to, before or after their first word."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None

    def end(self):
        if self.raises is not None:
            raise self.raises

    def unary_unary(self, raw, _context):
        self.end()
        return raw

    def unary_stream(self, raw, _context):
        yield raw
        self.end()

    def stream_unary(self, raws, _context):
        for _ in raws:
            self.end()
        return RAW

    def stream_stream(self, raws, _context):
        for raw in raws:
            self.end()
            yield raw


class RaisingAio(Raising):
    """Likewise of `grpc.aio`."""

    async def unary_unary(self, raw, _context):
        self.end()
        return raw

    async def unary_stream(self, raw, _context):
        yield raw
        self.end()

    async def stream_unary(self, raws, _context):
        async for _ in raws:
            self.end()
        return RAW

    async def stream_stream(self, raws, _context):
        async for raw in raws:
            self.end()
            yield raw


def service_of(handlers, shape):
    made = getattr(grpc, f"{shape}_rpc_method_handler")(getattr(handlers, shape))
    return RegisteredService("test.Echo", {"Open": made})


def outcome(channel, shape, metadata):
    """What a call says, and the error that ends it."""
    requests, responses = shape.split("_")
    call = getattr(channel, shape)("/test.Echo/Open")
    said = []
    try:
        answer = call(RAW if requests == "unary" else iter([RAW]), metadata=metadata, timeout=LIMIT_S)
        said.extend([answer] if responses == "unary" else answer)
    except grpc.RpcError as error:
        return error
    return said


@pytest.mark.parametrize("raises", [SystemExit(SECRET), Panic(SECRET), asyncio.CancelledError(SECRET)], ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_a_handler_raises_its_call_ends_by_internal_and_the_next_is_served(
    kind, service_leaf, trainer, shape, raises
):
    handlers, world = Raising() if kind == "sync" else RaisingAio(), World()
    settings = {"streams": 1, "lane": False} if kind == "sync" else {}
    services = [service_of(handlers, shape)]
    with serve(kind, world, service_leaf, services=services, **settings) as served, served.channel(trainer) as channel:
        metadata = bearer(world.token(trainer))
        handlers.raises = raises
        for _ in range(2):  # twice: the first has left its place
            error = outcome(channel, shape, metadata)
            assert judged(error) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
            assert SECRET not in f"{error.details()}{error.trailing_metadata()}"
            until(lambda: world.gate._quota.running == 0)
        handlers.raises = None
        assert outcome(channel, shape, metadata) == [RAW]
        until(lambda: world.gate._quota.running == 0)
        assert [(event.decision, event.outcome) for event in world.audit.events] == [
            *[("allowed", "INTERNAL")] * 2,
            ("allowed", "OK"),
        ]


@pytest.mark.parametrize("step", ["at_headers", "at_message", "before_handler"])
def test_a_panic_while_a_call_is_judged_ends_that_call_alone(kind, service_leaf, trainer, monkeypatch, step):
    handlers, world = Raising() if kind == "sync" else RaisingAio(), World()
    settings = {"lane": False} if kind == "sync" else {}

    def panics(*_arguments, **_named):
        raise Panic(SECRET)

    services = [service_of(handlers, "unary_unary")]
    with serve(kind, world, service_leaf, services=services, **settings) as served, served.channel(trainer) as channel:
        metadata = bearer(world.token(trainer))
        with monkeypatch.context() as patched:
            patched.setattr(world.gate, step, panics)
            assert judged(outcome(channel, "unary_unary", metadata)) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
        assert outcome(channel, "unary_unary", metadata) == [RAW]


def test_a_stream_that_its_peer_leaves_is_not_an_error_of_its_handler(kind, service_leaf, trainer):
    """The twin: its generator is closed, by what is no Exception either."""
    world, left = World(), threading.Event()
    finish = world.gate.finish

    def finishing(admission, code, **more):
        finish(admission, code, **more)
        left.set()

    world.gate.finish = finishing
    with serve(kind, world, service_leaf) as served, served.channel(trainer) as channel:
        call = channel.unary_stream("/test.Echo/UnaryStream")(
            GetVersionRequest(dataset="digits", version=3).SerializeToString(),
            metadata=bearer(world.token(trainer)),
            timeout=LIMIT_S,
        )
        next(call)
        call.cancel()
        served.echo.never.set()
        assert left.wait(LIMIT_S)
        assert world.audit.events == []
        assert world.gate._quota.running == 0


def until(happened):
    for _ in range(int(LIMIT_S * 100)):
        if happened():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")
