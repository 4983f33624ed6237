"""A channel speaks to the named service only, and changes certificates under way."""

from __future__ import annotations

import threading
from datetime import timedelta

import grpc
import pytest
from cryptography import x509

from casemate.auth.v1 import admin_service_pb2, token_service_pb2
from casemate.errors import Unavailable
from casemate.transport.certificates import CertificateSource, PinnedPair, thumbprint_of
from casemate.transport.channel import RotatingChannel, idempotent_methods
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_server
from tests.transport.conftest import QUICK, Echo


def rotated(channel: RotatingChannel) -> threading.Event:
    moved = threading.Event()
    channel.on_rotation(lambda _pair: moved.set())
    return moved


@pytest.mark.parametrize("name", ["datasets", "datasets.casemate.internal", "localhost.localdomain", "auth.other.org"])
def test_a_server_of_another_name_is_not_spoken_to(server, client_source, echo, name):
    with (
        RotatingChannel(target=f"127.0.0.1:{server.port}", service_name=name, source=client_source) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test.Echo/Say")(b"a", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert echo.seen_metadata == []


@pytest.mark.parametrize("name", ["auth", "auth.casemate.internal"])
def test_a_server_of_the_right_name_is(server, client_source, name):
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name=name, source=client_source) as channel:
        assert channel.unary_unary("/test.Echo/Say")(b"a") == b"a"


def test_a_client_certificate_cannot_pose_as_a_service(house, tmp_path, client_source, echo):
    # A client's leaf has no DNS name; one that a careless authority gave serverAuth still answers to none.
    source = CertificateSource(house.leaf(tmp_path / "m", uris=("spiffe://casemate.internal/t/acme/mallory",)))
    server = build_server(
        source=source, services=[echo.service()], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    try:
        with (
            RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            channel.unary_unary("/test.Echo/Say")(b"a", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop()


def test_both_sides_renew_under_load_and_no_call_fails(  # noqa: PLR0917  # fixtures
    server, server_source, client_source, house, server_directory, client_directory
):
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        say = channel.unary_unary("/test.Echo/Say")
        assert say(b"warm") == b"warm"
        failures: list[BaseException] = []
        calls = [0, 0]
        done = threading.Event()

        def load(index: int) -> None:
            while not done.is_set():
                try:
                    assert say(b"x") == b"x"
                    calls[index] += 1
                except BaseException as error:  # noqa: BLE001  # whatever it is, it is a failed call
                    failures.append(error)

        threads = [threading.Thread(target=load, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            house.service(server_directory, "auth")
            assert server_source.poll()
            moved = rotated(channel)
            house.client(client_directory)
            assert client_source.poll()
            assert moved.wait(10)
        done.set()
        for thread in threads:
            thread.join(10)
        assert failures == []
        assert channel.generation == 7
        assert channel.pair is client_source.current
        assert min(calls) > 6


def test_calls_carry_the_new_certificate_after_renewal_and_a_pinned_channel_the_old_one(
    house, server_source, client_source, client_directory
):
    seen = []

    def note(request, context):
        seen.append(thumbprint_of(x509.load_pem_x509_certificate(context.auth_context()["x509_pem_cert"][0])))
        return request

    service = RegisteredService("test.Note", {"It": grpc.unary_unary_rpc_method_handler(note)})
    server = build_server(
        source=server_source, services=[service], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    target = f"127.0.0.1:{server.port}"
    before = client_source.current
    with (
        RotatingChannel(target=target, service_name="auth", source=client_source) as channel,
        RotatingChannel(target=target, service_name="auth", source=PinnedPair(before)) as pinned,
    ):
        moved = rotated(channel)
        channel.unary_unary("/test.Note/It")(b"a")
        house.client(client_directory)
        assert client_source.poll()
        assert moved.wait(10)
        channel.unary_unary("/test.Note/It")(b"a")
        pinned.unary_unary("/test.Note/It")(b"a")
    server.stop()
    assert seen == [before.thumbprint, client_source.current.thumbprint, before.thumbprint]


def test_a_running_stream_survives_the_rotation_and_its_channel_closes_after_it(
    channel, client_source, house, client_directory, echo
):
    stream = channel.unary_stream("/test.Echo/Count")(b"a")
    assert next(stream) == b"a"
    old = channel._current
    moved = rotated(channel)
    house.client(client_directory)
    assert client_source.poll()
    assert moved.wait(10)
    assert channel.unary_unary("/test.Echo/Say")(b"b") == b"b"
    assert not old.closed
    closed = threading.Event()
    close = old.channel.close
    old.channel.close = lambda: (close(), closed.set())
    echo.let_go.set()
    assert list(stream) == [b"a"]
    assert closed.wait(10)
    assert old.closed


def test_a_new_certificate_that_the_server_refuses_moves_no_call(channel, client_source, house, client_directory):
    say = channel.unary_unary("/test.Echo/Say")
    assert say(b"a") == b"a"
    # serverAuth alone: good enough for the source, refused by the server.
    from cryptography.x509.oid import ExtendedKeyUsageOID

    house.client(client_directory, usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert client_source.poll()
    with pytest.raises(grpc.RpcError) as caught:
        channel._candidate.channel.unary_unary("/test.Echo/Say")(b"a", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert say(b"a") == b"a"
    assert channel.generation == 1
    moved = rotated(channel)
    house.client(client_directory)
    assert client_source.poll()
    assert moved.wait(10)
    assert say(b"a") == b"a"
    assert channel.generation == 2


def test_metadata_fits_the_certificate_that_the_call_is_made_with(server, client_source, house, client_directory, echo):
    with RotatingChannel(
        target=f"127.0.0.1:{server.port}",
        service_name="auth",
        source=client_source,
        call_metadata=lambda pair: (("bound-to", pair.thumbprint),),
    ) as channel:
        say = channel.unary_unary("/test.Echo/Say")
        say(b"a", metadata=(("own", "1"),))
        first = channel.pair
        moved = rotated(channel)
        house.client(client_directory)
        assert client_source.poll()
        assert moved.wait(10)
        say(b"a")
    assert echo.seen_metadata[0]["bound-to"] == first.thumbprint
    assert echo.seen_metadata[0]["own"] == "1"
    assert echo.seen_metadata[1]["bound-to"] == client_source.current.thumbprint


def test_a_unary_call_without_a_deadline_gets_one(server, client_source):
    with (
        RotatingChannel(
            target=f"127.0.0.1:{server.port}",
            service_name="auth",
            source=client_source,
            default_deadline=timedelta(milliseconds=200),
        ) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test.Echo/Wait")(b"a")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_deadline_of_the_caller_wins(server, client_source, echo):
    echo.let_go.set()
    with RotatingChannel(
        target=f"127.0.0.1:{server.port}",
        service_name="auth",
        source=client_source,
        default_deadline=timedelta(microseconds=1),
    ) as channel:
        assert channel.unary_unary("/test.Echo/Wait")(b"a", 5) == b"a"
        assert channel.unary_unary("/test.Echo/Wait")(b"a", timeout=5) == b"a"


class Flaky:
    """Fails the first two calls of each method."""

    def __init__(self) -> None:
        self.calls = 0

    def go(self, request, context):
        self.calls += 1
        if self.calls < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        return request

    def service(self) -> RegisteredService:
        return RegisteredService("test.Flaky", {"Go": grpc.unary_unary_rpc_method_handler(self.go)})


@pytest.mark.parametrize("idempotent", [True, False])
def test_unavailable_is_tried_again_for_idempotent_methods_only(server_source, client_source, idempotent):
    flaky = Flaky()
    server = build_server(
        source=server_source, services=[flaky.service()], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    methods = frozenset({"/test.Flaky/Go"}) if idempotent else frozenset({"/test.Flaky/Other"})
    with RotatingChannel(
        target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source, idempotent_methods=methods
    ) as channel:
        go = channel.unary_unary("/test.Flaky/Go")
        if idempotent:
            assert go(b"a") == b"a"
            assert flaky.calls == 3
        else:
            with pytest.raises(grpc.RpcError):
                go(b"a")
            assert flaky.calls == 1
    server.stop()


def test_idempotent_methods_are_read_from_the_policy_options():
    services = (
        *token_service_pb2.DESCRIPTOR.services_by_name.values(),
        *admin_service_pb2.DESCRIPTOR.services_by_name.values(),
    )
    found = idempotent_methods(*services)
    every = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert found < every
    assert found


def test_an_http_proxy_named_by_the_environment_is_not_used(server, client_source, monkeypatch):
    for name in ("https_proxy", "http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        assert channel.unary_unary("/test.Echo/Say")(b"a") == b"a"


def two_servers(source: CertificateSource) -> list:
    servers = []
    for _ in range(2):
        server = build_server(source=source, services=[Echo().service()], interceptors=[], address="127.0.0.1:0")
        server.start()
        servers.append(server)
    return servers


def test_a_rolling_stop_of_one_of_two_servers_fails_no_call(server_source, client_source):
    first, second = two_servers(server_source)
    target = f"ipv4:127.0.0.1:{first.port},127.0.0.1:{second.port}"
    with RotatingChannel(target=target, service_name="auth", source=client_source) as channel:
        say = channel.unary_unary("/test.Echo/Say")
        failures: list[BaseException] = []
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                try:
                    say(b"x")
                except BaseException as error:  # noqa: BLE001  # whatever it is, it is a failed call
                    failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            say(b"warm")
        first.stop()
        for _ in range(20):
            say(b"after")
        done.set()
        for thread in threads:
            thread.join(10)
    second.stop()
    assert failures == []


def test_a_closed_channel_refuses_calls_and_can_be_closed_again(channel):
    channel.close()
    channel.close()
    with pytest.raises(Unavailable):
        channel.unary_unary("/test.Echo/Say")(b"a")


def test_the_ready_future_of_grpc_works_on_it(channel, client_source, house, client_directory):
    grpc.channel_ready_future(channel).result(5)
    moved = rotated(channel)
    house.client(client_directory)
    assert client_source.poll()
    assert moved.wait(10)
    grpc.channel_ready_future(channel).result(5)
