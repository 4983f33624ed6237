"""A house with one service and one client, and an echo service to call."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_server
from tests.transport.house import House

QUICK = timedelta(milliseconds=10)


class Echo:
    """What the tests call: says back, streams, or waits until let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.seen_metadata: list[dict[str, str]] = []

    def say(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen_metadata.append(dict(context.invocation_metadata()))
        return request

    def wait(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.entered.set()
        assert self.let_go.wait(10)
        return request

    def count(self, request: bytes, _context: grpc.ServicerContext):
        yield request
        assert self.let_go.wait(10)
        yield request

    def gather(self, requests, _context: grpc.ServicerContext) -> bytes:
        return b"".join(requests)

    def talk(self, requests, _context: grpc.ServicerContext):
        yield from requests

    def service(self) -> RegisteredService:
        return RegisteredService(
            "test.Echo",
            {
                "Say": grpc.unary_unary_rpc_method_handler(self.say),
                "Wait": grpc.unary_unary_rpc_method_handler(self.wait),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Gather": grpc.stream_unary_rpc_method_handler(self.gather),
                "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            },
        )


@pytest.fixture(scope="session")
def house() -> House:
    return House()


@pytest.fixture
def server_directory(house: House, tmp_path: Path) -> Path:
    return house.service(tmp_path / "auth", "auth")


@pytest.fixture
def client_directory(house: House, tmp_path: Path) -> Path:
    return house.client(tmp_path / "alice")


@pytest.fixture
def server_source(server_directory: Path) -> CertificateSource:
    return CertificateSource(server_directory)


@pytest.fixture
def client_source(client_directory: Path) -> CertificateSource:
    return CertificateSource(client_directory)


@pytest.fixture
def echo():
    echo = Echo()
    yield echo
    echo.let_go.set()


@pytest.fixture
def server(server_source: CertificateSource, echo: Echo):
    server = build_server(
        source=server_source, services=[echo.service()], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    yield server
    echo.let_go.set()
    server.stop(timedelta(seconds=1))


@pytest.fixture
def channel(server, client_source: CertificateSource):
    with RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=client_source) as channel:
        yield channel


def answered_version(port: int, directory: Path, version: ssl.TLSVersion) -> str:
    """Makes one handshake of exactly that version; raises if it is refused."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with handshake(port, context) as connection:
        return connection.version()


@contextmanager
def handshake(port: int, context: ssl.SSLContext, name: str = "auth.casemate.internal"):
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=name) as connection,
    ):
        yield connection


def served_serial(port: int, directory: Path) -> int:
    """The serial number of the certificate that a new handshake is shown."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    context.set_alpn_protocols(["h2"])
    with handshake(port, context) as connection:
        return int(connection.getpeercert()["serialNumber"], 16)
