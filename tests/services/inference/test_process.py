"""`python -m services.inference` as an operator runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from casemate.auth.v1 import trust_service_pb2, trust_service_pb2_grpc
from casemate.sealing.local import LocalKeyRing
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.server import build_server, registered
from tests.services.inference.house import PATIENCE
from tests.support.authority import TRUST_DOMAIN, LeafFactory

ROOT = Path(__file__).parents[3]


class Feed(trust_service_pb2_grpc.TrustServiceServicer):
    """Tells that there is nothing to know yet, and falls silent."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def WatchTrust(self, request, context):  # noqa: N802, ARG002  # the protocol's name and arguments
        yield trust_service_pb2.WatchTrustResponse(
            epoch="epoch",
            sequence=1,
            snapshot=trust_service_pb2.TrustSnapshot(issuer=f"https://auth.{TRUST_DOMAIN}"),
        )
        self.ended.wait(PATIENCE)


@pytest.fixture
def auth_port(leaf: LeafFactory) -> Iterator[int]:
    feed = Feed()
    server = build_server(
        source=CertificateSource(leaf("service", service="auth")),
        services=[registered(trust_service_pb2_grpc.add_TrustServiceServicer_to_server, feed)],
        interceptors=(),
        address="127.0.0.1:0",
        lame_duck=timedelta(0),
    )
    server.start()
    yield server.port
    feed.ended.set()
    server.stop(timedelta(0))


def environment(tmp_path: Path, leaf: LeafFactory, auth_port: int) -> dict[str, str]:
    kek = tmp_path / "kek.json"
    LocalKeyRing.create(kek)
    return {
        "PATH": os.environ["PATH"],
        "GRPC_SSL_CIPHER_SUITES": os.environ["GRPC_SSL_CIPHER_SUITES"],
        "CASEMATE_INFERENCE_LISTEN": "127.0.0.1:0",
        "CASEMATE_INFERENCE_METRICS_LISTEN": "127.0.0.1:0",
        "CASEMATE_INFERENCE_IDENTITY_DIR": str(leaf("service", service="inference")),
        "CASEMATE_INFERENCE_AUTH_ADDRESS": f"127.0.0.1:{auth_port}",
        "CASEMATE_INFERENCE_REPOSITORY_DIR": str(tmp_path / "repository"),
        "CASEMATE_INFERENCE_KEK_FILE": str(kek),
        "CASEMATE_INFERENCE_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
    }


def run(settings: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.inference"], cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True
    )


def test_it_says_when_it_is_ready_serves_health_and_ends_when_told(
    tmp_path: Path, leaf: LeafFactory, auth_port: int
) -> None:
    process = run(environment(tmp_path, leaf, auth_port))
    try:
        messages = (json.loads(line)["message"] for line in process.stderr)
        port = next(int(found[1]) for text in messages if (found := re.match(r"ready: rpcs on port (\d+)", text)))
        channel = RotatingChannel(
            target=f"127.0.0.1:{port}",
            service_name="inference",
            source=CertificateSource(leaf("client", tenant="acme", name="probe")),
        )
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        channel.close()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.communicate()


def test_without_settings_it_names_every_one_that_is_missing_and_ends(
    tmp_path: Path, leaf: LeafFactory, auth_port: int
) -> None:
    settings = environment(tmp_path, leaf, auth_port)
    missing = ["CASEMATE_INFERENCE_KEK_FILE", "CASEMATE_INFERENCE_REPOSITORY_DIR"]
    for name in missing:
        del settings[name]
    process = run(settings)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert all(name in errors for name in missing)
    assert "Traceback" not in errors


def test_a_port_in_use_is_one_clear_line(tmp_path: Path, leaf: LeafFactory, auth_port: int) -> None:
    settings = {
        **environment(tmp_path, leaf, auth_port),
        "CASEMATE_INFERENCE_LISTEN": f"127.0.0.1:{auth_port}",
    }
    process = run(settings)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the port is in use" in errors
    assert "Traceback" not in errors


def test_no_call_comes_in_without_a_certificate(tmp_path: Path, leaf: LeafFactory, auth_port: int) -> None:
    """The twin of the first test: the same server, the same question, no certificate."""
    process = run(environment(tmp_path, leaf, auth_port))
    try:
        messages = (json.loads(line)["message"] for line in process.stderr)
        port = next(int(found[1]) for text in messages if (found := re.match(r"ready: rpcs on port (\d+)", text)))
        roots = CertificateSource(leaf("client", tenant="acme", name="probe")).current.roots_pem
        with (
            grpc.secure_channel(
                f"127.0.0.1:{port}",
                grpc.ssl_channel_credentials(roots),
                options=[("grpc.ssl_target_name_override", f"inference.{TRUST_DOMAIN}")],
            ) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
