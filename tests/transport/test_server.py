"""Servers take what they should, refuse the rest, and end without losing a call."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.channel import RotatingChannel
from casemate.transport.health import health_service
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.registry import RegisteredService, methods_of, registered
from casemate.transport.server import build_aio_server, build_server
from tests.transport.conftest import QUICK, served_serial
from tests.transport.house import House, put

BIND = """
import os, sys
from pathlib import Path
from casemate.transport.floor import raise_floor
raise_floor(os.environ)
from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.server import build_server
source = CertificateSource(Path(sys.argv[2]))
try:
    if sys.argv[3] == "metrics":
        MetricsServer(Metrics("second"), source, sys.argv[1])
    else:
        build_server(source=source, services=[], interceptors=[], address=sys.argv[1])
except ConfigurationError as error:
    print("refused:", error)
else:
    print("bound")
"""


def second_process(port: int, directory, kind: str) -> str:
    command = [sys.executable, "-c", BIND, f"127.0.0.1:{port}", str(directory), kind]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_a_second_process_cannot_bind_the_port_until_it_is_free(server_source, server_directory):
    server = build_server(
        source=server_source, services=[], interceptors=[], address="127.0.0.1:0", lame_duck=timedelta(0)
    )
    server.start()
    answer = second_process(server.port, server_directory, "grpc")
    server.stop()
    assert answer == (
        f"refused: 127.0.0.1:{server.port} cannot be bound: the port is in use or the address is not ours"
    )
    assert second_process(server.port, server_directory, "grpc") == "bound"


def test_a_second_process_cannot_bind_the_metrics_port_until_it_is_free(server_source, server_directory):
    server = MetricsServer(Metrics("first"), server_source, "127.0.0.1:0")
    server.start()
    answer = second_process(server.port, server_directory, "metrics")
    server.stop()
    assert answer.startswith(f"refused: 127.0.0.1:{server.port} cannot be bound for metrics")
    assert second_process(server.port, server_directory, "metrics") == "bound"


async def test_the_aio_server_does_not_share_its_port_either(server_source):
    first = build_aio_server(
        source=server_source, services=[], interceptors=[], address="127.0.0.1:0", lame_duck=timedelta(0)
    )
    await first.start()
    try:
        with pytest.raises(ConfigurationError, match="port is in use"):
            build_aio_server(source=server_source, services=[], interceptors=[], address=f"127.0.0.1:{first.port}")
    finally:
        await first.stop()


def test_all_four_kinds_of_call_pass(channel, echo):
    assert channel.unary_unary("/test.Echo/Say")(b"a") == b"a"
    assert channel.stream_unary("/test.Echo/Gather")(iter([b"a", b"b"])) == b"ab"
    assert list(channel.stream_stream("/test.Echo/Talk")(iter([b"a", b"b"]))) == [b"a", b"b"]
    echo.let_go.set()
    assert list(channel.unary_stream("/test.Echo/Count")(b"a")) == [b"a", b"a"]


def refusal(port: int, source: CertificateSource) -> grpc.StatusCode:
    with (
        RotatingChannel(target=f"127.0.0.1:{port}", service_name="auth", source=source) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test.Echo/Say")(b"a", timeout=5)
    return caught.value.code()


def test_a_certificate_of_another_authority_opens_no_door(server, house, tmp_path):
    directory = House("stranger").client(tmp_path / "eve")
    source = CertificateSource(directory)
    # Trusts the real server: the refusal under test is the server's.
    object.__setattr__(source.current, "roots_pem", house.roots_pem)
    assert refusal(server.port, source) is grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_opens_no_door(server, house, tmp_path):
    source = CertificateSource(house.client(tmp_path / "late", lifetime=timedelta(minutes=-1)))
    assert refusal(server.port, source) is grpc.StatusCode.UNAVAILABLE


def test_no_certificate_opens_no_door(server, house):
    credentials = grpc.ssl_channel_credentials(root_certificates=house.roots_pem)
    options = (("grpc.ssl_target_name_override", "auth.casemate.internal"),)
    with (
        grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test.Echo/Say")(b"a", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_metadata_over_the_limit_is_refused_each_time_and_under_it_taken(channel):
    say = channel.unary_unary("/test.Echo/Say")
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as caught:
            say(b"a", metadata=(("padding", "x" * 9_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert say(b"a", metadata=(("padding", "x" * 7_000),)) == b"a"


def test_a_message_over_the_limit_is_refused_and_one_under_it_taken(server_source, client_source, echo):
    server = build_server(
        source=server_source,
        services=[echo.service()],
        interceptors=[],
        address="127.0.0.1:0",
        max_message_bytes=1_000,
        lame_duck=QUICK,
    )
    server.start()
    try:
        with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/test.Echo/Say")(b"x" * 1_001)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert channel.unary_unary("/test.Echo/Say")(b"x" * 990) == b"x" * 990
    finally:
        server.stop()


def test_a_session_ticket_ends_with_the_certificates_that_it_was_given_under(  # fixtures
    server_source, client_source, house, server_directory
):
    """On an unchanged server it is taken, and the gate judges the certificate's dates on every call."""
    from grpc._cython import cygrpc

    reused = []

    def note(request, context):
        reused.append(context.auth_context()["ssl_session_reused"][0])
        return request

    pair, tickets = client_source.current, cygrpc.SSLSessionCacheLRU(8)
    credentials = grpc.ssl_channel_credentials(
        pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem
    )
    options = (
        ("grpc.ssl_target_name_override", "auth.casemate.internal"),
        ("grpc.ssl_session_cache", tickets),
        ("grpc.use_local_subchannel_pool", 1),
    )

    def call():
        with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as channel:
            assert channel.unary_unary("/test.Note/It")(b"a", timeout=5) == b"a"

    service = RegisteredService("test.Note", {"It": grpc.unary_unary_rpc_method_handler(note)})
    server = build_server(
        source=server_source, services=[service], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    call()
    call()
    house.service(server_directory, "auth")
    assert server_source.poll()
    call()
    server.stop()
    assert (reused[0], reused[2]) == (b"false", b"false")
    assert reused[1] == b"true"


def test_hundreds_of_connections_at_once_leave_the_server_alive(server_directory):
    """In a process of its own: what this guards against ended the whole process."""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE, str(server_directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        port = int(process.stdout.readline())
        for _ in range(3):
            raws = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(200)]
            assert all(raw.recv(1) == b"" for raw in raws)
            for raw in raws:
                raw.close()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == 0
        process.stdout.close()


ALONE = """
import os, sys
from pathlib import Path
from casemate.transport.floor import raise_floor
raise_floor(os.environ)
from casemate.transport.certificates import CertificateSource
from casemate.transport import options
options.HARDENED_SERVER_OPTIONS = tuple(
    (name, 300 if name == "grpc.server_handshake_timeout_ms" else value)
    for name, value in options.HARDENED_SERVER_OPTIONS
)
from casemate.transport.server import build_server
server = build_server(
    source=CertificateSource(Path(sys.argv[1])), services=[], interceptors=[], address="127.0.0.1:0"
)
server.start()
print(server.port, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_peer_that_dawdles_in_the_handshake_is_closed(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        assert raw.recv(1) == b""


def test_a_connection_holds_a_hundred_streams_and_the_next_waits_for_one_to_end(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(99)]  # the channel's own is the hundredth
    assert {next(watch).status for watch in watches} == {1}
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=0.5))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    watches.pop().cancel()
    watches.append(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert next(watches[-1]).status == 1
    for watch in watches:
        watch.cancel()


def test_a_renewed_server_certificate_is_shown_to_the_next_handshake(server, server_source, house, server_directory):
    before = served_serial(server.port, server_directory)
    house.service(server_directory, "auth")
    assert server_source.poll()
    after = served_serial(server.port, server_directory)
    assert after != before
    assert after == load_pair(server_directory).leaf.serial_number


def test_a_bad_new_server_certificate_leaves_the_old_one_served(server, server_source, server_directory):
    before = served_serial(server.port, server_directory)
    good = (server_directory / "cert.pem").read_bytes()
    put(server_directory / "cert.pem", b"half a certif")
    assert not server_source.poll()
    assert not server_source.poll()
    put(server_directory / "cert.pem", good)
    assert served_serial(server.port, server_directory) == before


def test_stopping_tells_watchers_and_lets_running_calls_finish(server_source, client_source, echo):
    server = build_server(
        source=server_source, services=[echo.service()], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running = channel.unary_unary("/test.Echo/Wait").future(b"a")
        assert echo.entered.wait(5)
        stopping = threading.Thread(target=server.stop, args=(timedelta(seconds=10),))
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        echo.let_go.set()
        assert running.result(5) == b"a"
        watch.cancel()
        stopping.join(10)
        assert not stopping.is_alive()


async def test_stopping_the_aio_server_tells_watchers(server_source, client_source):
    server = build_aio_server(
        source=server_source, services=[], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    await server.start()
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        first, second = (stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2))
        for watch in (first, second):
            answer = await asyncio.to_thread(next, watch)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        # The servicer of grpcio-health-checking forgets the second watcher when the first leaves.
        first.cancel()
        stopping = asyncio.create_task(server.stop(timedelta(seconds=5)))
        answer = await asyncio.to_thread(next, second)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        second.cancel()
        await stopping


def test_health_of_an_unknown_service_is_not_found_and_of_a_known_one_is_told(server, channel):
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="test.Echo"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    server.health.set_serving("test.Echo", serving=True)
    assert stub.Check(health_pb2.HealthCheckRequest(service="test.Echo")).status == 1
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="test.Other"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    server.health.set_serving("test.Other", serving=True)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_many_health_watchers_take_no_thread_from_calls(server_source, client_source, echo):
    server = build_server(
        source=server_source,
        services=[echo.service()],
        interceptors=[],
        address="127.0.0.1:0",
        threads=2,
        lame_duck=QUICK,
    )
    server.start()
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(10)]
        assert [next(watch).status for watch in watches] == [1] * 10
        assert channel.unary_unary("/test.Echo/Say")(b"a") == b"a"
        for watch in watches:
            watch.cancel()
    server.stop()


def test_a_service_registered_twice_is_refused(server_source, echo):
    with pytest.raises(ConfigurationError, match=r"registered twice: test\.Echo"):
        build_server(
            source=server_source,
            services=[echo.service(), echo.service()],
            interceptors=[],
            address="127.0.0.1:0",
        )


def test_generated_code_registers_its_methods_with_the_recorder():
    service, state = health_service()
    assert service.methods == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert methods_of([service]) == service.methods
    assert state.status("") == 1
    with pytest.raises(ConfigurationError, match="registered 0 services"):
        registered(lambda _servicer, _server: None, object())
