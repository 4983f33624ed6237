"""One echo service behind the gate, on either server, over real mutual TLS."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest, GetVersionResponse
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.caller_context import current_caller
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.transport.certificates import CertificateSource
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_aio_server, build_server
from tests.gate.world import DOMAIN, World

OFTEN = timedelta(milliseconds=50)
QUICK = timedelta(milliseconds=10)
SECRET = "postgres://user:hunter2@database/secret"
LIMIT_S = 10.0
RAISES, ABORTS, PARSED = 1, 2, 3
UNARY = ("Unary", "Open", "Revoke", "Sensitive", "Other", "Peer", "Services", "NoPolicy")


def answer(request: GetVersionRequest) -> GetVersionResponse:
    return GetVersionResponse(version=request.version, signer_key_id=current_caller().path)


class SyncEcho:
    """Handlers of the synchronous server."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.never = threading.Event()

    def unary(self, request, context):
        self.entered.append(request.version)
        if request.version == RAISES:
            raise ValueError(SECRET)
        if request.version == ABORTS:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "own words")
        return answer(request)

    def unary_stream(self, request, _context):
        yield answer(request)
        if request.version == RAISES:
            raise ValueError(SECRET)
        self.never.wait(LIMIT_S)
        yield answer(request)

    def stream_unary(self, requests, _context):
        versions = [request.version for request in requests]
        return GetVersionResponse(version=sum(versions), signer_key_id=current_caller().path)

    def stream_stream(self, requests, _context):
        for request in requests:
            yield answer(request)


class AioEcho:
    """Handlers of the asynchronous server."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.never = threading.Event()

    async def unary(self, request, context):
        self.entered.append(request.version)
        if request.version == RAISES:
            raise ValueError(SECRET)
        if request.version == ABORTS:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "own words")
        return answer(request)

    async def unary_stream(self, request, _context):
        yield answer(request)
        if request.version == RAISES:
            raise ValueError(SECRET)
        await asyncio.Event().wait()

    async def stream_unary(self, requests, _context):
        versions = [request.version async for request in requests]
        return GetVersionResponse(version=sum(versions), signer_key_id=current_caller().path)

    async def stream_stream(self, requests, _context):
        async for request in requests:
            yield answer(request)

    async def by_context(self, _requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(answer(request))


def echo_service(echo) -> RegisteredService:
    wire = {
        "request_deserializer": GetVersionRequest.FromString,
        "response_serializer": GetVersionResponse.SerializeToString,
    }
    unary = grpc.unary_unary_rpc_method_handler(echo.unary, **wire)
    by_context = getattr(echo, "by_context", echo.stream_stream)
    return RegisteredService(
        "test.Echo",
        {
            **dict.fromkeys(UNARY, unary),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(echo.unary_stream, **wire),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(echo.stream_unary, **wire),
            "ByContext": grpc.stream_stream_rpc_method_handler(by_context, **wire),
            "StreamStream": grpc.stream_stream_rpc_method_handler(echo.stream_stream, **wire),
        },
    )


class Served:
    """A running server and how to call it."""

    def __init__(self, world: World, echo, port: int, source: CertificateSource, *, stop=None, lane=False) -> None:
        self.stop, self.lane = stop, lane
        self.world = world
        self.echo = echo
        self.port = port
        self.source = source

    @contextmanager
    def channel(self, leaf: Path, *more: tuple[str, object]) -> Iterator[grpc.Channel]:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(leaf / "ca.pem").read_bytes(),
            private_key=(leaf / "key.pem").read_bytes(),
            certificate_chain=(leaf / "cert.pem").read_bytes(),
        )
        options = (
            ("grpc.ssl_target_name_override", f"datasets.{DOMAIN}"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            *more,
        )
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            yield channel

    def call(self, channel, method="Unary", *, token="", request=None, raw=None, metadata=None):
        """One unary call: the response, or the RpcError is raised."""
        if request is None:
            request = GetVersionRequest(dataset="digits", version=PARSED)
        invoke = channel.unary_unary(f"/test.Echo/{method}", response_deserializer=GetVersionResponse.FromString)
        if metadata is None:
            metadata = bearer(token)
        return invoke(request.SerializeToString() if raw is None else raw, metadata=metadata, timeout=LIMIT_S)

    def stream(self, channel, method, requests, *, token=""):
        """One call with a stream either way."""
        kind = channel.stream_unary if method == "StreamUnary" else channel.stream_stream
        invoke = kind(
            f"/test.Echo/{method}",
            request_serializer=GetVersionRequest.SerializeToString,
            response_deserializer=GetVersionResponse.FromString,
        )
        return invoke(requests, metadata=bearer(token), timeout=LIMIT_S)

    def health(self, channel, metadata=()):
        invoke = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return invoke(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=LIMIT_S)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


@contextmanager
def serve(kind: str, world: World, leaf: Path, **settings) -> Iterator[Served]:
    with (serve_sync if kind == "sync" else serve_aio)(world, leaf, settings) as served:
        yield served


@contextmanager
def serve_sync(world: World, leaf: Path, settings) -> Iterator[Served]:
    echo = SyncEcho()
    threads, lane = settings.pop("threads", 16), settings.pop("lane", True)
    source = settings.pop("source", None) or CertificateSource(leaf)
    services = settings.pop("services", None) or [echo_service(echo)]
    interceptor = GateInterceptor(world.gate, **{"recheck_every": OFTEN, **settings})
    server = build_server(
        source=source,
        services=services,
        interceptors=[interceptor],
        address="127.0.0.1:0",
        threads=threads,
        lame_duck=QUICK,
        lane=lane,
    )
    server.start()
    try:
        yield Served(world, echo, server.port, source, stop=server.stop, lane=lane)
    finally:
        echo.never.set()
        server.stop(timedelta(seconds=1))
        interceptor.close()


@contextmanager
def serve_aio(world: World, leaf: Path, settings) -> Iterator[Served]:
    echo = AioEcho()
    settings.pop("threads", None)
    source = settings.pop("source", None) or CertificateSource(leaf)
    services = settings.pop("services", None) or [echo_service(echo)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start():
        server = build_aio_server(
            source=source,
            services=services,
            interceptors=[AioGateInterceptor(world.gate, **{"recheck_every": OFTEN, **settings})],
            address="127.0.0.1:0",
            lame_duck=QUICK,
        )
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(LIMIT_S)
    try:
        yield Served(world, echo, server.port, source)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(timedelta(seconds=1)), loop).result(LIMIT_S)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT_S)
        loop.close()
