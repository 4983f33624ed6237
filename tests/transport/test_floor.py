"""TLS 1.3 is the lowest version that any port answers."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from datetime import timedelta

import pytest

from casemate.errors import ConfigurationError
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE, raise_floor
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.server import build_aio_server
from tests.transport.conftest import QUICK, answered_version

REFUSED = (ssl.SSLError, ConnectionError)


def test_tls_1_2_is_refused_on_the_synchronous_server_and_1_3_is_answered(server, client_directory):
    assert answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises(REFUSED):
        answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_2)


async def test_tls_1_2_is_refused_on_the_aio_server_and_1_3_is_answered(server_source, client_directory):
    server = build_aio_server(
        source=server_source, services=[], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    await server.start()
    try:
        assert answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(REFUSED):
            answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_2)
    finally:
        await server.stop(timedelta(0))


def test_tls_1_2_is_refused_on_the_metrics_port_and_1_3_is_answered(server_source, client_directory):
    server = MetricsServer(Metrics("auth"), server_source, "127.0.0.1:0")
    server.start()
    try:
        assert answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises(REFUSED):
            answered_version(server.port, client_directory, ssl.TLSVersion.TLSv1_2)
    finally:
        server.stop()


BUILD = """
import os, sys
from pathlib import Path
{before}
from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource
from casemate.transport.server import build_server
try:
    server = build_server(
        source=CertificateSource(Path(sys.argv[1])), services=[], interceptors=[], address="127.0.0.1:0"
    )
except ConfigurationError as error:
    print("refused:", error)
else:
    print("built")
"""


@pytest.mark.parametrize(
    ("before", "printed"),
    [
        ("import casemate.transport.floor as floor; floor.raise_floor(os.environ)", "built"),
        ("", f"refused: this process's gRPC would accept TLSv1.2: export {CIPHER_SUITES_VARIABLE}={CIPHER_SUITES}"),
        # Set too late: the environment looks right, and grpc has read it already. Only a handshake can tell.
        (
            f"import grpc; grpc.ssl_channel_credentials(); os.environ['{CIPHER_SUITES_VARIABLE}'] = '{CIPHER_SUITES}'",
            f"refused: this process's gRPC would accept TLSv1.2: export {CIPHER_SUITES_VARIABLE}={CIPHER_SUITES}",
        ),
    ],
    ids=["raised", "not raised", "set after the import"],
)
def test_a_server_is_built_only_if_a_handshake_proves_the_floor(server_directory, before, printed):
    environment = {name: value for name, value in os.environ.items() if name != CIPHER_SUITES_VARIABLE}
    ran = subprocess.run(
        [sys.executable, "-c", BUILD.format(before=before), str(server_directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == printed
    assert printed != "built" or ran.stderr == ""  # the refused half of the probe is no news


def test_the_floor_module_does_not_load_grpc():
    code = "import sys, casemate.transport.floor; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_raising_the_floor_too_late_names_the_variable_to_export():
    environment: dict[str, str] = {}
    with pytest.raises(ConfigurationError, match=f"export {CIPHER_SUITES_VARIABLE}={CIPHER_SUITES}"):
        raise_floor(environment, loaded={"grpc"})
    assert CIPHER_SUITES_VARIABLE not in environment
    raise_floor(environment, loaded=set())
    assert environment[CIPHER_SUITES_VARIABLE] == CIPHER_SUITES
    raise_floor(environment, loaded={"grpc"})


def test_a_weaker_list_in_the_environment_is_replaced():
    environment = {CIPHER_SUITES_VARIABLE: "ECDHE-ECDSA-AES128-GCM-SHA256"}
    raise_floor(environment, loaded=set())
    assert environment[CIPHER_SUITES_VARIABLE] == CIPHER_SUITES
