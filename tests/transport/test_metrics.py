"""Metrics are counted by name and shown to readers only."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading

import pytest

from casemate.errors import ConfigurationError
from casemate.transport.metrics import Metrics, MetricsServer
from tests.transport.conftest import handshake, served_serial
from tests.transport.house import House


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("auth")


@pytest.fixture
def shown(metrics, server_source):
    server = MetricsServer(metrics, server_source, "127.0.0.1:0")
    server.start()
    yield server
    server.stop()


def context_of(directory) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


def get(port: int, directory, path: str = "/metrics") -> tuple[int, str]:
    with handshake(port, context_of(directory)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: auth\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


def test_a_service_and_an_operator_read_what_was_counted(metrics, shown, house, tmp_path):
    metrics.increment("denied_total", reason="TOKEN_EXPIRED")
    for directory in (house.service(tmp_path / "s", "datasets"), house.client(tmp_path / "o", tenant="casemate")):
        status, text = get(shown.port, directory)
        assert status == 200
        assert 'casemate_denied_total{reason="TOKEN_EXPIRED"} 1.0' in text
        assert 'casemate_component_info{component="auth"} 1.0' in text


def test_a_client_of_a_tenant_reads_nothing(shown, client_directory):
    assert get(shown.port, client_directory) == (403, "")


def test_a_reader_of_another_trust_domain_reads_nothing(shown, house, tmp_path):
    directory = house.leaf(tmp_path / "x", uris=("spiffe://casemate.internal.evil.org/svc/auth",))
    assert get(shown.port, directory) == (403, "")


def test_another_path_is_not_found(shown, server_directory):
    assert get(shown.port, server_directory, "/")[0] == 404


def refused(port: int, context: ssl.SSLContext) -> bool:
    # In TLS 1.3 the client hears of a refused certificate only with its first read.
    try:
        with handshake(port, context) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            return connection.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_no_certificate_and_one_of_another_authority_are_refused(shown, house, server_directory, tmp_path):
    assert refused(shown.port, ssl.create_default_context(cafile=server_directory / "ca.pem"))
    stranger = House("stranger").service(tmp_path / "x", "auth", roots_pem=house.roots_pem)
    assert refused(shown.port, context_of(stranger))
    assert not refused(shown.port, context_of(server_directory))


def test_a_renewed_certificate_is_shown_to_the_next_handshake(shown, server_source, house, server_directory):
    before = served_serial(shown.port, server_directory)
    house.service(server_directory, "auth")
    assert server_source.poll()
    assert served_serial(shown.port, server_directory) != before


def test_peers_that_dawdle_take_their_own_places_only(shown, server_directory):
    idle = [socket.create_connection(("127.0.0.1", shown.port)) for _ in range(3)]
    assert get(shown.port, server_directory)[0] == 200
    for each in idle:
        each.close()


def test_a_name_that_was_not_made_is_refused_and_a_made_one_counted(metrics):
    with pytest.raises(KeyError):
        metrics.increment("nonsense_total")
    metrics.counter("nonsense_total", "Now it is something.", ("kind",))
    metrics.increment("nonsense_total", 2, kind="a")
    assert metrics.value("nonsense_total", kind="a") == 2


def test_two_registries_in_one_process_do_not_meet(metrics):
    metrics.increment("authority_alarms_total")
    assert Metrics("other").value("authority_alarms_total") == 0


@pytest.mark.parametrize("address", ["127.0.0.1:notaport", "203.0.113.7:7411", "127.0.0.1:70000"])
def test_an_address_that_cannot_be_bound_is_one_clear_line(metrics, server_source, address):
    with pytest.raises(ConfigurationError, match="cannot be bound for metrics"):
        MetricsServer(metrics, server_source, address)


def test_what_many_threads_count_is_told_whole_however_often_somebody_reads(metrics):
    count = metrics.counting("denied_total", reason="TOKEN_EXPIRED")
    again = metrics.counting("denied_total", reason="TOKEN_EXPIRED")
    assert metrics.value("denied_total", reason="TOKEN_EXPIRED") == 0

    def many():
        for _ in range(500):
            count()
            again()
        metrics.value("denied_total", reason="TOKEN_EXPIRED")

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("denied_total", reason="TOKEN_EXPIRED") == 4_000
    assert metrics.value("denied_total", reason="TOKEN_EXPIRED") == 4_000
    metrics.increment("denied_total", reason="TOKEN_EXPIRED")
    assert metrics.value("denied_total", reason="TOKEN_EXPIRED") == 4_001
