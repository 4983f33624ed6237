"""Attacks on TLS itself: versions, protocols, peers without a certificate or with a stranger's."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from tests.gate.attacks.scene import UNAVAILABLE, Scene, connected, served_as, tls
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import DOMAIN, World

ROOT = Path(__file__).parents[3]


def test_plaintext_is_not_answered(scene):
    with grpc.insecure_channel(f"127.0.0.1:{scene.served.port}") as plain:
        scene.unreachable(plain)
    scene.good()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_a_lower_version_of_tls_is_not_answered(scene, trainer, version):
    context = tls(trainer)
    context.minimum_version = version
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)), connected(scene.served.port, context):
        pass
    with connected(scene.served.port, tls(trainer)) as secure:
        assert secure.version() == "TLSv1.3"
    scene.good()


STARTS = """
import asyncio, sys
from datetime import timedelta
from casemate.transport.certificates import CertificateSource
from casemate.transport.server import build_aio_server, build_server

def make(build):
    return build(source=CertificateSource(sys.argv[2]), services=[], interceptors=[], address="127.0.0.1:0")

async def make_aio():
    make(build_aio_server)

from pathlib import Path
sys.argv[2] = Path(sys.argv[2])
make(build_server) if sys.argv[1] == "sync" else asyncio.run(make_aio())
print("bound")
"""


def test_a_process_without_the_floor_does_not_start(kind, service_leaf):
    def start(**environment):
        return subprocess.run(
            [sys.executable, "-c", STARTS, kind, service_leaf],
            cwd=ROOT,
            env={"PATH": os.defpath, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    bare = start()
    assert bare.returncode != 0
    assert "GRPC_SSL_CIPHER_SUITES" in bare.stderr
    assert "bound" in start(GRPC_SSL_CIPHER_SUITES="ECDHE-PSK-CHACHA20-POLY1305").stdout


def test_no_certificate_opens_no_connection(scene, trainer):
    roots = grpc.ssl_channel_credentials((trainer / "ca.pem").read_bytes())
    options = (("grpc.ssl_target_name_override", f"datasets.{DOMAIN}"),)
    with grpc.secure_channel(f"127.0.0.1:{scene.served.port}", roots, options) as bare:
        scene.unreachable(bare)
    scene.good()


@pytest.mark.parametrize("odd", ["wrong-ca", "expired", "not-yet-valid", "server-auth-only"])
def test_a_certificate_that_tls_refuses_opens_no_connection(scene, leaf, odd):
    with scene.served.channel(leaf(odd)) as theirs:
        scene.unreachable(theirs, method="Peer")
    with scene.served.channel(leaf("sound")) as sound:
        scene.good(channel=sound, method="Peer")


def test_a_certificate_that_signs_itself_opens_no_connection(scene, foreign_authority, leaf, tmp_path):
    issued = foreign_authority.issue_client(tenant="acme", name="trainer")
    for name, content in (
        ("key.pem", issued.private_key_pem.reveal()),
        ("cert.pem", issued.certificate_pem),
        ("ca.pem", (leaf("sound") / "ca.pem").read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
    with scene.served.channel(tmp_path) as theirs:
        scene.unreachable(theirs)
    scene.good()


def test_a_client_speaks_to_the_service_that_it_meant_and_sends_no_token_to_another(scene, trainer):
    def channel(name):
        return RotatingChannel(
            target=f"127.0.0.1:{scene.served.port}", service_name=name, source=CertificateSource(trainer)
        )

    with channel("inference") as other:
        scene.unreachable(other)
    with channel("datasets") as meant:
        scene.good(channel=meant)


@pytest.mark.parametrize(
    "changes",
    [{"dns_names": ("elsewhere.example",)}, {"end": timedelta(seconds=-1)}, {"dns_names": ()}],
    ids=["another name", "expired", "no DNS name"],
)
def test_a_server_with_an_odd_certificate_gets_no_token(leaf, trainer, changes):
    sent = []

    def note(request, context):
        sent.append(context.invocation_metadata())
        return request

    def answered(folder):
        pair = [(folder / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem")]
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_registered_method_handlers("test.Note", {"It": grpc.unary_unary_rpc_method_handler(note)})
        credentials = grpc.ssl_server_credentials([tuple(pair[:2])], pair[2], require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            with RotatingChannel(
                target=f"127.0.0.1:{port}", service_name="datasets", source=CertificateSource(trainer)
            ) as channel:
                return channel.unary_unary("/test.Note/It")(b"x", metadata=(("authorization", "Bearer x"),), timeout=3)
        finally:
            server.stop(None).wait()

    with pytest.raises(grpc.RpcError) as refused:
        answered(leaf("profile", profile=served_as(**changes)))
    assert refused.value.code() in (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert sent == []
    assert answered(leaf("profile", profile=served_as())) == b"x"


def test_a_leaf_of_another_key_type_opens_no_lower_version(kind, leaf, trainer):
    folder = leaf("profile", profile=served_as(key=rsa.generate_private_key(65537, 3072)))
    with serve(kind, World(), folder) as served:
        context = tls(trainer, version=ssl.TLSVersion.TLSv1_2)
        with pytest.raises((ssl.SSLError, ConnectionError)), connected(served.port, context):
            pass
        with served.channel(trainer) as channel:
            Scene(served, channel, trainer, kind).good()


def test_a_leaf_that_is_renewed_with_another_key_type_opens_no_lower_version_either(kind, leaf, trainer):
    folder = leaf("service", service="datasets")
    source = CertificateSource(folder)
    with serve(kind, World(), folder, source=source) as served:
        leaf("profile", profile=served_as(key=rsa.generate_private_key(65537, 3072)), into=folder)
        assert source.poll()
        context = tls(trainer, version=ssl.TLSVersion.TLSv1_2)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)), connected(served.port, context):
            pass
        with served.channel(trainer) as channel:
            Scene(served, channel, trainer, kind).good()
        with connected(served.port, tls(trainer)) as secure:
            assert secure.version() == "TLSv1.3"


def test_handshakes_that_dawdle_are_closed_and_hold_up_nobody(scene):
    slow = [socket.create_connection(("127.0.0.1", scene.served.port), timeout=LIMIT_S) for _ in range(500)]
    try:
        with scene.served.channel(scene.trainer) as fresh:
            scene.good(channel=fresh)
        assert all(raw.recv(1) == b"" for raw in slow)
    finally:
        for raw in slow:
            raw.close()
    scene.good()


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)], ids=["none", "http/1.1"])
def test_another_protocol_than_http_2_is_not_spoken(scene, trainer, alpn):
    with suppress(ssl.SSLError, ConnectionError), connected(scene.served.port, tls(trainer, alpn=alpn)) as secure:
        secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert secure.recv(1) == b""
    assert scene.world.audit.events == []
    scene.good()
