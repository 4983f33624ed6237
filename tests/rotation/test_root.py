"""The root changes under load, both sides in turn: no call fails, and the old root counts for nothing in the end."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from casemate.clock import SystemClock
from casemate.errors import CasemateError, ConfigurationError
from casemate.pki.authority import NEXT, CertificateAuthority
from casemate.pki.leaves import needs_renewal, write_leaf
from casemate.pki.succession import Step, Succession, give_roots
from casemate.sealing.local import LocalKeyRing
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.server import build_server
from tests.transport.conftest import Echo

DOMAIN = "casemate.internal"
CALLERS = 4


class Root:
    """An authority's folder, a service's leaf and a client's, and both sides' sources."""

    def __init__(self, folder: Path) -> None:
        self.ring = LocalKeyRing.create(folder / "kek.json")
        self.directory = folder / "ca"
        CertificateAuthority.create(self.directory, trust_domain=DOMAIN, key_encryption=self.ring, clock=SystemClock())
        self.leaves = {"service": folder / "service", "client": folder / "client"}
        for kind in self.leaves:
            self.issue(kind)
        self.sources = {kind: CertificateSource(leaf, poll=timedelta(hours=1)) for kind, leaf in self.leaves.items()}

    @property
    def authority(self) -> CertificateAuthority:
        return CertificateAuthority.load(
            self.directory, trust_domain=DOMAIN, key_encryption=self.ring, clock=SystemClock()
        )

    @property
    def succession(self) -> Succession:
        return Succession(directory=self.directory, trust_domain=DOMAIN, key_encryption=self.ring, clock=SystemClock())

    def issue(self, kind: str, folder: Path | None = None) -> None:
        authority = self.authority
        issued = (
            authority.issue_service(service="auth")
            if kind == "service"
            else authority.issue_client(tenant="acme", name="alice")
        )
        write_leaf(issued, folder or self.leaves[kind])

    def give(self, kind: str) -> None:
        give_roots(self.leaves[kind], self.authority.ca_pem)
        assert self.sources[kind].poll()

    def renew(self, kind: str) -> None:
        self.issue(kind)
        assert self.sources[kind].poll()


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


def calls_once(port: int, folder: Path) -> str:
    channel = RotatingChannel(target=f"127.0.0.1:{port}", service_name="auth", source=CertificateSource(folder))
    try:
        return channel.unary_unary("/test.Echo/Say")(b"hello", timeout=5).decode()
    except (grpc.RpcError, CasemateError) as error:
        return error.code().name if isinstance(error, grpc.RpcError) else error.code.value
    finally:
        channel.close()


@pytest.mark.parametrize("changes", [2, pytest.param(20, marks=pytest.mark.long)])
def test_the_root_changes_under_load_without_one_failed_call(root, tmp_path, changes):
    echo = Echo()
    server = build_server(
        source=root.sources["service"], services=[echo.service()], interceptors=[], address="127.0.0.1:0"
    )
    server.start()
    channel = RotatingChannel(target=f"127.0.0.1:{server.port}", service_name="auth", source=root.sources["client"])
    done, failures, counts = threading.Event(), [], [0] * CALLERS
    went_on = threading.Condition()

    def load(caller: int) -> None:
        say = channel.unary_unary("/test.Echo/Say")
        while not done.is_set():
            try:
                assert say(b"hello", timeout=10) == b"hello"
            except Exception as error:  # noqa: BLE001  # every kind of failure is what is counted
                failures.append(error)
            with went_on:
                counts[caller] += 1
                went_on.notify_all()

    def every_caller_goes_on() -> None:
        with went_on:
            seen = list(counts)
            assert went_on.wait_for(lambda: all(now > before + 2 for now, before in zip(counts, seen, strict=True)), 30)

    threads = [threading.Thread(target=load, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(changes):
            root.issue("client", tmp_path / "old")  # a leaf of the old root, that nobody renews
            root.succession.prepare()
            for kind in ("service", "client"):
                root.give(kind)
                every_caller_goes_on()
            root.succession.switch()
            for kind in ("client", "service"):
                root.renew(kind)
                every_caller_goes_on()
            give_roots(tmp_path / "old", root.authority.ca_pem)
            assert calls_once(server.port, tmp_path / "old") == "hello"
            root.succession.finish()
            for kind in ("client", "service"):
                root.give(kind)
                every_caller_goes_on()
            assert calls_once(server.port, tmp_path / "old") == "UNAVAILABLE"
            assert calls_once(server.port, root.leaves["client"]) == "hello"
    finally:
        done.set()
        for thread in threads:
            thread.join()
        channel.close()
        server.stop()
    assert not failures, f"{len(failures)} of {sum(counts)} calls failed: {failures[0]!r}"


def test_steps_come_in_order_and_each_once(root):
    change = root.succession
    assert change.step is Step.SETTLED
    for early in (change.switch, change.finish):
        with pytest.raises(ConfigurationError, match="is settled"):
            early()
    change.prepare()
    with pytest.raises(ConfigurationError, match="is prepared"):
        change.prepare()
    change.switch()
    with pytest.raises(ConfigurationError, match="is switched"):
        change.switch()
    change.finish()
    assert change.step is Step.SETTLED


def test_a_switch_that_was_interrupted_is_done_again(root):
    before = root.authority.ca_pem
    root.succession.prepare()
    # The new key has its place, the new certificate has not: the key is not the old certificate's.
    (root.directory / "key.sealed").write_bytes((root.directory / NEXT / "key.sealed").read_bytes())
    with pytest.raises(ConfigurationError, match="do not belong together"):
        root.authority.issue_service(service="auth")
    root.succession.switch()
    assert root.authority.ca_pem.endswith(before)
    assert root.authority.ca_pem != before


def test_a_leaf_is_coherent_at_every_step(root):
    clock = SystemClock()
    root.succession.prepare()
    give_roots(root.leaves["client"], root.authority.ca_pem)
    assert not needs_renewal(root.leaves["client"], clock)
    root.succession.switch()
    root.issue("client")
    assert not needs_renewal(root.leaves["client"], clock)
    root.succession.finish()
    give_roots(root.leaves["client"], root.authority.ca_pem)
    assert not needs_renewal(root.leaves["client"], clock)
