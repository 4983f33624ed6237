"""Attacks by certificates that TLS takes: outside the profile, expired, denied, renewed, rotated."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2

from casemate.errors import Reason
from casemate.gate.core.records import RevocationKind
from casemate.transport import options
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.metrics import Metrics
from casemate.transport.options import HARDENED_SERVER_OPTIONS
from casemate.transport.status import from_rpc_error
from tests.gate.attacks.scene import DENIED, UNAUTHENTICATED, UNAVAILABLE, Scene, replace, served_as
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import DOMAIN, World, thumbprint_of
from tests.support.authority import OddProfile


def named(uri):
    """A profile whose one URI is exactly these characters."""
    return lambda: OddProfile(uris=(uri,))


ODD = {
    "no EKU": lambda: OddProfile(usages=()),
    "an authority": lambda: OddProfile(ca=True),
    "two names": lambda: OddProfile(uris=(f"spiffe://{DOMAIN}/t/acme/odd", f"spiffe://{DOMAIN}/t/globex/odd")),
    "no name": lambda: OddProfile(uris=(), dns_names=(f"odd.{DOMAIN}",)),
    "another domain": named("spiffe://elsewhere.example/t/acme/odd"),
    "a longer domain": named(f"spiffe://{DOMAIN}.example/t/acme/odd"),
    "NUL": named(f"spiffe://{DOMAIN}/t/acme/odd\0"),
    "percent": named(f"spiffe://{DOMAIN}/t/acme/%2e%2e"),
    "dots": named(f"spiffe://{DOMAIN}/t/acme/../globex"),
    "no tenant": named(f"spiffe://{DOMAIN}/acme/odd"),
    "https": named(f"https://{DOMAIN}/t/acme/odd"),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_certificate_outside_the_profile_is_refused_by_tls_or_by_the_gate(scene, leaf, odd):
    entered = len(scene.served.echo.entered)
    with scene.served.channel(leaf("profile", profile=ODD[odd]())) as theirs:
        with pytest.raises(grpc.RpcError) as refused:
            scene.served.call(theirs, "Peer")
        if refused.value.code() is not UNAVAILABLE:
            assert refused.value.code() is UNAUTHENTICATED
            assert from_rpc_error(refused.value).reason is Reason.PEER_REFUSED
            assert scene.world.audit.denials == ["PEER_REFUSED"]
    assert len(scene.served.echo.entered) == entered
    with scene.served.channel(leaf("profile", profile=OddProfile())) as sound:
        scene.good(channel=sound, method="Peer")


def test_a_name_outside_ascii_cannot_be_a_name(scene, leaf):
    lookalike = f"spiffe://{DOMAIN}/t/\N{CYRILLIC SMALL LETTER A}cme/odd"
    raw = x509.UniformResourceIdentifier._init_without_validation(lookalike)
    assert raw.value == lookalike
    with pytest.raises(ValueError, match="A-label"):
        leaf("profile", profile=OddProfile(uris=(lookalike,)))
    punycode = leaf("profile", profile=OddProfile(uris=(f"spiffe://{DOMAIN}/t/xn--cme-5cd/odd",)))
    # A name of its own, and not acme's: the characters are compared, never what they look like.
    with scene.served.channel(punycode) as theirs:
        answer = scene.served.call(theirs, "Peer")
        assert answer.signer_key_id == "t/xn--cme-5cd/odd"
    with scene.served.channel(leaf("sound")) as sound:
        scene.good(channel=sound, method="Peer")


def test_an_expired_certificate_does_not_come_back_on_a_session_ticket(scene, leaf):
    from grpc._cython import cygrpc

    short = leaf("profile", profile=OddProfile(end=timedelta(seconds=2)))
    ends = x509.load_pem_x509_certificate((short / "cert.pem").read_bytes()).not_valid_after_utc
    ticket = ("grpc.ssl_session_cache", cygrpc.SSLSessionCacheLRU(8))
    with scene.served.channel(short, ticket) as first:
        scene.good(channel=first, method="Peer")
        while datetime.now(UTC) <= ends:
            threading.Event().wait(0.05)
        # On the connection that is open: by the gate.
        scene.unauthenticated(Reason.PEER_REFUSED, channel=first, method="Peer")
    with scene.served.channel(short, ticket) as second:
        # With its ticket: TLS takes it, and the gate does not.
        scene.unauthenticated(Reason.PEER_REFUSED, channel=second, method="Peer")
    with scene.served.channel(short) as third:
        scene.unreachable(third, method="Peer")
    with scene.served.channel(leaf("sound")) as sound:
        scene.good(channel=sound, method="Peer")


def test_a_certificate_that_expires_on_an_open_connection_ends_its_calls(scene):
    scene.good(method="Peer")
    scene.world.clock.advance(hours=25)
    scene.world.hear()
    scene.unauthenticated(Reason.PEER_REFUSED, method="Peer", token="")
    scene.world.clock.advance(hours=-25)
    scene.good(method="Peer")
    assert dict(HARDENED_SERVER_OPTIONS)["grpc.max_connection_age_ms"] == 600_000


@pytest.mark.parametrize("by", [RevocationKind.SPIFFE_ID, RevocationKind.CERTIFICATE])
def test_a_peer_denied_while_its_connection_is_open_is_refused_with_its_next_call(scene, trainer, mallory, by):
    scene.good()
    values = {
        RevocationKind.SPIFFE_ID: f"spiffe://{DOMAIN}/t/acme/trainer",
        RevocationKind.CERTIFICATE: thumbprint_of(trainer),
    }
    token = scene.world.token(trainer)
    scene.world.revoke(by, values[by])
    scene.unauthenticated(Reason.PEER_REFUSED, method="Peer")
    with pytest.raises(grpc.RpcError) as refused:
        scene.served.call(scene.channel, token=token)
    assert refused.value.code() is UNAUTHENTICATED
    with scene.served.channel(mallory) as other:
        scene.good(channel=other, token=scene.world.token(mallory))
    scene.world.publish()
    scene.good()


def test_a_root_is_added_and_removed_and_its_leaves_follow(kind, leaf, authority, foreign_authority, trainer):
    service, theirs = leaf("service", service="datasets"), leaf("wrong-ca", tenant="acme", name="other")
    source = CertificateSource(service)
    with serve(kind, World(), service, source=source) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        ours = (service / "ca.pem").read_bytes()
        with served.channel(theirs) as early:
            scene.unreachable(early, method="Peer")
        replace(service / "ca.pem", ours + foreign_authority.ca_pem)
        assert source.poll()
        with served.channel(theirs) as during:
            scene.good(channel=during, method="Peer")
            replace(service / "ca.pem", ours)
            assert source.poll()
            scene.good()
            with served.channel(theirs) as late:
                scene.unreachable(late, method="Peer")
            # The connection that is open lives on until it ages out, or until its certificate is denied.
            scene.good(channel=during, method="Peer")
            served.world.revoke(RevocationKind.CERTIFICATE, thumbprint_of(theirs))
            scene.unauthenticated(Reason.PEER_REFUSED, channel=during, method="Peer")
        scene.good()


def test_an_open_connection_ages_out_and_must_prove_itself_under_the_roots_of_then(
    kind, leaf, foreign_authority, trainer, monkeypatch
):
    """Ten minutes as it is served; a quarter of a second here, so that nobody waits for it."""
    aged = {"grpc.max_connection_age_ms": 250, "grpc.max_connection_age_grace_ms": 100}
    assert set(aged) <= set(dict(HARDENED_SERVER_OPTIONS))
    hardened = tuple((name, aged.get(name, value)) for name, value in HARDENED_SERVER_OPTIONS)
    monkeypatch.setattr(options, "HARDENED_SERVER_OPTIONS", hardened)
    service, theirs = leaf("service", service="datasets"), leaf("wrong-ca", tenant="acme", name="other")
    ours = (service / "ca.pem").read_bytes()
    replace(service / "ca.pem", ours + foreign_authority.ca_pem)
    source = CertificateSource(service)
    with serve(kind, World(), service, source=source) as served, served.channel(theirs) as open_before:
        served.call(open_before, "Peer")
        replace(service / "ca.pem", ours)
        assert source.poll()
        ends = time.monotonic() + 6 * LIMIT_S

        def call_on():
            while time.monotonic() < ends:
                served.call(open_before, "Peer")

        with pytest.raises(grpc.RpcError) as ended:
            call_on()
        assert ended.value.code() is UNAVAILABLE
        with served.channel(trainer) as channel:
            Scene(served, channel, trainer, kind).good()


class Calling:
    """One caller that calls without a pause, on another thread, and counts what fails."""

    def __init__(self, call):
        self._call, self._ended = call, threading.Event()
        self.done, self.failed = 0, []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join(LIMIT_S)

    def _run(self):
        while not self._ended.is_set():
            try:
                self._call()
                self.done += 1
            except grpc.RpcError as error:
                self.failed.append(error)

    def go_on(self, calls):
        """Waits until so many more were answered."""
        wanted, ends = self.done + calls, time.monotonic() + 6 * LIMIT_S
        while self.done < wanted:
            assert time.monotonic() < ends, self.failed
            time.sleep(0.001)


def test_both_sides_renew_again_and_again_under_load_and_no_call_fails(kind, leaf):
    """The whole minute, on all services, is in `tests/cli/test_endurance.py`."""
    service, client = leaf("service", service="datasets"), leaf("client", tenant="acme", name="renewing")
    at_server, at_client = CertificateSource(service), CertificateSource(client)
    with (
        serve(kind, World(), service, source=at_server) as served,
        RotatingChannel(target=f"127.0.0.1:{served.port}", service_name="datasets", source=at_client) as channel,
        Calling(lambda: served.call(channel, "Peer")) as calling,
    ):
        for _ in range(10):
            calling.go_on(20)
            leaf("service", service="datasets", into=service)
            leaf("client", tenant="acme", name="renewing", into=client)
            assert at_server.poll()
            assert at_client.poll()
        calling.go_on(50)
        assert not calling.failed
        # What is refused by its thumbprint is the last one: the calls are made with it.
        served.world.revoke(RevocationKind.CERTIFICATE, at_client.current.thumbprint)
        ends = time.monotonic() + LIMIT_S
        while not calling.failed:
            assert time.monotonic() < ends
            time.sleep(0.001)
        # Its watch of health ends as well, and a channel that watches sends no more calls: one that does not hears why.
        with served.channel(client) as unwatched, pytest.raises(grpc.RpcError) as refused:
            served.call(unwatched, "Peer")
        assert from_rpc_error(refused.value).reason is Reason.PEER_REFUSED
    told = {from_rpc_error(error).reason for error in calling.failed}
    assert told <= {Reason.PEER_REFUSED, Reason.DEPENDENCY_UNAVAILABLE}


def test_a_renewal_that_does_not_come_makes_the_server_unready_before_its_certificate_ends(kind, leaf, trainer):
    folder = leaf("profile", profile=served_as(start=timedelta(hours=-23), end=timedelta(seconds=60)))
    source = CertificateSource(folder)
    with serve(kind, World(), folder, source=source) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        assert served.health(channel).status == health_pb2.HealthCheckResponse.NOT_SERVING
        scene.good()  # whoever calls all the same is served until it ends
        leaf("service", service="datasets", into=folder)
        assert source.poll()
        assert served.health(channel).status == health_pb2.HealthCheckResponse.SERVING
        scene.good()


@pytest.mark.parametrize("damage", ["no certificate", "key of another", "no key"])
def test_a_rotation_that_fails_keeps_the_old_certificate_and_is_counted(kind, leaf, trainer, damage):
    service, metrics = leaf("service", service="datasets"), Metrics("datasets")
    source = CertificateSource(service, metrics=metrics)
    failed = "casemate_certificate_reload_failed_total"
    with serve(kind, World(), service, source=source) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        before = metrics.registry.get_sample_value(failed)
        if damage == "no certificate":
            replace(service / "cert.pem", b"half a certif")
        elif damage == "key of another":
            replace(service / "key.pem", (trainer / "key.pem").read_bytes())
        else:
            (service / "key.pem").unlink()
        assert not source.poll()
        assert not source.poll()  # half-written files are given one look more
        assert metrics.registry.get_sample_value(failed) == before + 1
        with served.channel(trainer) as fresh:
            scene.good(channel=fresh)
        leaf("service", service="datasets", into=service)
        assert source.poll()
        with served.channel(trainer) as fresh:
            scene.good(channel=fresh)


def test_a_peer_outside_the_methods_list_is_denied(scene, leaf):
    scene.refused(DENIED, Reason.CALLER_NOT_ALLOWED, method="Services", audited="CALLER_NOT_ALLOWED")
    with scene.served.channel(leaf("service", service="inference")) as named:
        scene.good(channel=named, method="Services")
