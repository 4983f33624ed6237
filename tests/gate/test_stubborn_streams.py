"""Streams whose handler does not end when it is told to: their peer learns of the end, and hears nothing after it."""

from __future__ import annotations

import asyncio
import queue
import threading

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest, GetVersionResponse
from casemate.errors import Reason
from casemate.gate.core.records import RevocationKind
from casemate.transport.registry import RegisteredService
from tests.gate.adapter_world import DIGITS, judged, kind, refusal, service_leaf, trainer
from tests.gate.served import LIMIT_S, PARSED, serve
from tests.gate.test_adapters_streams import ENDINGS, end_of_right, short
from tests.gate.world import World, bearer

__all__ = ["kind", "service_leaf", "short", "trainer"]  # fixtures

AFTERWARDS = 66
"""The version in what a handler says once it should have ended."""


WIRE = {
    "request_deserializer": GetVersionRequest.FromString,
    "response_serializer": GetVersionResponse.SerializeToString,
}


def said(version: int) -> GetVersionResponse:
    return GetVersionResponse(version=version)


class Stubborn:
    """Handlers of `grpc.aio` that swallow what should end them, each in its own way, until the test lets them go."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()
        self.waiting = threading.Event()
        self.leave = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def first(self, request):
        """What each says first."""
        self._loop = asyncio.get_running_loop()
        return said(request.version)

    def let_go(self):
        self._loop.call_soon_threadsafe(self.leave.set)

    async def swallow(self) -> None:
        """Waits on, whatever interrupts it."""
        self.waiting.set()
        while not self.leave.is_set():
            try:
                await self.leave.wait()
            except asyncio.CancelledError:
                self.interrupted.set()

    async def once(self) -> None:
        """Takes no notice of the first interruption."""
        self.waiting.set()
        try:
            await self.leave.wait()
        except asyncio.CancelledError:
            self.interrupted.set()

    async def waits_on(self, request, _context):
        yield self.first(request)
        await self.swallow()

    async def speaks_on(self, request, _context):
        yield self.first(request)
        await self.once()
        yield said(AFTERWARDS)
        yield said(AFTERWARDS)

    async def ends_well(self, request, _context):
        yield self.first(request)
        await self.once()

    async def writes_on(self, request, context):
        await context.write(self.first(request))
        await self.once()
        try:
            await context.write(said(AFTERWARDS))
        except Exception:  # noqa: BLE001  # as careless as handlers are
            await self.swallow()

    async def waits_in_its_end(self, request, _context):
        try:
            yield self.first(request)
            self.waiting.set()
            await self.leave.wait()
        finally:
            await self.swallow()


class CarelessAio:
    """Handlers that take the end of their right for the end of their messages."""

    async def many(self, requests, _context):
        try:
            async for request in requests:
                yield said(request.version)
        except Exception:  # noqa: BLE001, S110  # the carelessness
            pass
        yield said(AFTERWARDS)

    async def one(self, requests, _context):
        try:
            async for _ in requests:
                pass
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, S110
            pass
        return said(AFTERWARDS)

    async def quiet(self, requests, _context):
        try:
            async for request in requests:
                yield said(request.version)
        except Exception:  # noqa: BLE001, S110
            pass


class CarelessSync:
    """Likewise on the synchronous server."""

    def many(self, requests, _context):
        yield from self.quiet(requests, _context)
        yield said(AFTERWARDS)

    def one(self, requests, _context):
        try:
            for _ in requests:
                pass
        except Exception:  # noqa: BLE001, S110
            pass
        return said(AFTERWARDS)

    def quiet(self, requests, _context):
        try:
            for request in requests:
                yield said(request.version)
        except Exception:  # noqa: BLE001, S110
            pass


def careless(kind):
    handlers = CarelessSync() if kind == "sync" else CarelessAio()
    many, one = grpc.stream_stream_rpc_method_handler, grpc.stream_unary_rpc_method_handler
    return RegisteredService(
        "test.Echo",
        {
            "StreamStream": many(handlers.many, **WIRE),
            "StreamUnary": one(handlers.one, **WIRE),
            "ByContext": many(handlers.quiet, **WIRE),
        },
    )


WAYS = ["waits_on", "speaks_on", "ends_well", "writes_on", "waits_in_its_end"]


def echo_of(stubborn, way):
    handler = grpc.unary_stream_rpc_method_handler(getattr(stubborn, way), **WIRE)
    return RegisteredService("test.Echo", {"UnaryStream": handler})


class Running:
    """One stream of a stubborn handler that has said its first word."""

    def __init__(self, channel, token, stubborn):
        self._call = channel.unary_stream(
            "/test.Echo/UnaryStream", response_deserializer=GetVersionResponse.FromString
        )(DIGITS.SerializeToString(), metadata=bearer(token), timeout=LIMIT_S)
        assert next(self._call).version == PARSED
        assert stubborn.waiting.wait(LIMIT_S)

    def end(self):
        """What came after, and the code and reason that it ended by."""
        heard = []
        try:
            heard.extend(message.version for message in self._call)
        except grpc.RpcError as error:
            return heard, judged(error)
        return heard, (grpc.StatusCode.OK, None)


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_whose_handler_swallows_its_end_is_ended_all_the_same(service_leaf, trainer, way):
    stubborn, world = Stubborn(), World()
    services = [echo_of(stubborn, way)]
    with serve("aio", world, service_leaf, services=services) as served, served.channel(trainer) as channel:
        try:
            running = Running(channel, world.token(trainer, jti="the-token"), stubborn)
            expected = end_of_right(world, trainer, "revoked")
            assert running.end() == ([], expected)
            assert world.audit.denials == ["TOKEN_REVOKED"]
        finally:
            stubborn.let_go()
        until(lambda: world.gate._quota.running == 0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_says_why_whatever_right_was_lost(service_leaf, trainer, short, ending):
    stubborn, world = Stubborn(), World()
    holder = short if ending == "notAfter" else trainer
    services = [echo_of(stubborn, "waits_on")]
    with serve("aio", world, service_leaf, services=services) as served, served.channel(holder) as channel:
        try:
            running = Running(channel, world.token(holder, jti="the-token"), stubborn)
            expected = end_of_right(world, holder, ending)
            assert running.end() == ([], expected)
            # Its place is not free as long as the handler is there.
            assert world.gate._quota.running == 1
        finally:
            stubborn.let_go()
        until(lambda: world.gate._quota.running == 0)


@pytest.mark.parametrize("way", WAYS)
def test_news_that_does_not_concern_it_leaves_it_alone(service_leaf, trainer, way):
    """The twin: the same handlers, let go before anything ends them."""
    stubborn, world = Stubborn(), World()
    services = [echo_of(stubborn, way)]
    with serve("aio", world, service_leaf, services=services) as served, served.channel(trainer) as channel:
        running = Running(channel, world.token(trainer, jti="the-token"), stubborn)
        world.revoke(RevocationKind.TOKEN, "another-token")
        stubborn.let_go()
        heard, end = running.end()
        assert heard == {"speaks_on": [AFTERWARDS] * 2, "writes_on": [AFTERWARDS]}.get(way, [])
        assert end == (grpc.StatusCode.OK, None)
        assert not stubborn.interrupted.is_set()
        until(lambda: world.gate._quota.running == 0)


@pytest.mark.parametrize("method", ["StreamStream", "StreamUnary", "ByContext"])
@pytest.mark.parametrize("revoked", [True, False])
def test_a_handler_that_takes_the_end_of_its_right_for_the_end_of_its_messages_is_not_heard(
    kind, service_leaf, trainer, method, revoked
):
    world, sent = World(), queue.SimpleQueue()
    running = serve(kind, world, service_leaf, services=[careless(kind)])
    with running as served, served.channel(trainer) as channel:
        token = bearer(world.token(trainer, jti="the-token"))
        call = channel.stream_stream(f"/test.Echo/{method}", response_deserializer=GetVersionResponse.FromString)(
            iter(sent.get, None), metadata=token, timeout=LIMIT_S
        )
        sent.put(DIGITS.SerializeToString())
        if method == "StreamUnary":
            until(lambda: world.gate._quota.running == 1)
        else:
            assert next(call).version == PARSED
        world.revoke(RevocationKind.TOKEN, "the-token" if revoked else "another-token")
        if revoked:
            assert refusal(next, call) == (grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_REVOKED)
        sent.put(None)
        if not revoked:
            assert [message.version for message in call] == ([] if method == "ByContext" else [AFTERWARDS])
        until(lambda: world.gate._quota.running == 0)


WORDS = 40


class Flooding:
    """A handler of the synchronous server that says more than its peer takes."""

    def __init__(self) -> None:
        self.said = 0

    def many(self, _request, _context):
        for _ in range(WORDS):
            yield GetVersionResponse(signer_key_id="x" * 1_000_000)
            self.said += 1

    async def many_aio(self, _request, _context):
        for _ in range(WORDS):
            yield GetVersionResponse(signer_key_id="x" * 1_000_000)
            self.said += 1


@pytest.mark.parametrize("reads", [False, True])
def test_a_stream_whose_peer_does_not_read_is_cut_and_it_learns_why(kind, service_leaf, trainer, reads):
    """On the synchronous server a message that waits to be sent keeps metadata back: the text names the call."""
    flooding, world = Flooding(), World()
    many = flooding.many if kind == "sync" else flooding.many_aio
    handler = grpc.unary_stream_rpc_method_handler(many, **WIRE)
    services = [RegisteredService("test.Echo", {"UnaryStream": handler})]
    with serve(kind, world, service_leaf, services=services) as served, served.channel(trainer) as channel:
        call = channel.unary_stream("/test.Echo/UnaryStream")(
            DIGITS.SerializeToString(), metadata=bearer(world.token(trainer, jti="the-token")), timeout=LIMIT_S
        )
        looks = [-1, 0]
        while len(set(looks[-5:])) > 1 or not looks[-1]:  # until all that the connection takes is under way
            looks.append(flooding.said)
            threading.Event().wait(0.02)
        assert looks[-1] < WORDS
        world.revoke(RevocationKind.TOKEN, "the-token" if not reads else "another-token")
        if reads:
            assert sum(1 for _ in call) == WORDS
            assert (call.code(), world.audit.denials) == (grpc.StatusCode.OK, [])
            return
        until(lambda: world.gate._quota.running == 0)  # it reads nothing until all is over
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        [event] = world.audit.events
        assert event.reason == "TOKEN_REVOKED"
        told = ended.value.details() if kind == "sync" else dict(ended.value.trailing_metadata())
        assert event.request_id in f"{told}"


def until(happened):
    for _ in range(int(LIMIT_S * 100)):
        if happened():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")
