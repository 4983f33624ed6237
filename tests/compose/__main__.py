"""`python -m tests.compose`: builds, brings up, tells the story, breaks things, takes down, and counts."""

from __future__ import annotations

import argparse
import signal
import socket
import ssl
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from casemate.client.session import Endpoints, Session
from tests.compose.bases import IMAGES, bases, snapshot
from tests.compose.cluster import ComposeCluster
from tests.compose.engine import Engine, NoEngine, engine
from tests.compose.hardening import (
    database_address,
    require_database_shut,
    require_hardened,
    require_nothing_writable,
    require_silent,
    require_split_networks,
)
from tests.compose.images import Images
from tests.compose.load import Load, predictions_counted
from tests.compose.story import ToldStory

LIFETIME = "2m"
SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


class Report:
    """Says what is done, and counts what held."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self._begun = time.monotonic()

    def say(self, line: str) -> None:
        """One line, with the seconds since the start."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {line}", flush=True)

    def check(self, sentence: str, act: Callable[[], object]) -> bool:
        """Runs one check; a failure is shown and counted, and the others still run."""
        begun = time.monotonic()
        try:
            detail = act()
        except Exception:  # noqa: BLE001  # whatever it is, this check did not hold
            self.failed += 1
            self.say(f"FAILED  {sentence}\n{traceback.format_exc(limit=4)}")
            return False
        self.passed += 1
        self.say(
            f"held    {sentence}"
            + (f": {detail}" if isinstance(detail, str) else "")
            + f" ({time.monotonic() - begun:.1f} s)"
        )
        return True


def main() -> int:
    """Runs everything; 0 if all held, or if no engine can be had here, which is said loudly."""
    argparse.ArgumentParser(prog="make test-compose", description=__doc__).parse_args()
    # Asked to end, it takes down what it brought up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    try:
        with engine(report.say) as found:
            _run(found, report)
    except NoEngine as error:
        bar = "*" * 78
        print(f"{bar}\nSKIPPED: the compose file was NOT run. {error}.\n{bar}", flush=True)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


def _run(found: Engine, report: Report) -> None:
    tag = f"test-{uuid.uuid4().hex[:8]}"
    # The classic builder runs wherever BuildKit's client part is missing, as in Debian.
    if not found.answers("buildx", "version"):
        found.environment["DOCKER_BUILDKIT"] = "0"
    made = bases(found, tag, report.say)
    folder = tempfile.TemporaryDirectory(prefix="casemate-compose-")
    context = snapshot(Path(folder.name) / "checkout")
    images = Images(found, made, tag, context=context)
    try:
        if not report.check("the images build from locked wheels", lambda: _build(images, report)):
            return
        _check_images(images, report)
        cluster = ComposeCluster(
            found,
            project=f"casemate-{tag}",
            tag=tag,
            lifetime=LIFETIME,
            folder=Path(folder.name) / "outside",
            file=context / "docker-compose.yml",
        )
        try:
            if report.check("`compose up` gives a healthy cluster", cluster.up):
                _check_cluster(cluster, report)
        finally:
            report.check("`compose down` leaves no container, network or volume", lambda: _down(cluster))
    finally:
        images.remove()
        if made.made:
            found.docker("image", "rm", "--force", *made.made, check=False)
        folder.cleanup()


def _build(images: Images, report: Report) -> None:
    for target in (*IMAGES, "postgres"):
        images.build(target)
        report.say(f"        built {target}")


def _check_images(images: Images, report: Report) -> None:
    def small() -> str:
        found = list(images.added_megabytes())
        assert all(added <= budget for _, added, budget in found), found
        return ", ".join(f"{target} adds {added:.0f} MB of {budget}" for target, added, budget in found)

    report.check("each image is small", small)
    report.check(
        "numeric user, exec form, health check with the workload's certificate, labels", images.require_configured
    )
    report.check("no shell, pip, package manager, compiler or setuid file", images.require_bare)
    report.check("each image holds its own service and dependencies alone", images.require_own_alone)
    report.check("a second build from nothing has the same layers", lambda: images.require_reproducible("auth"))


def _check_cluster(cluster: ComposeCluster, report: Report) -> None:
    begun = {service: _serial_of(cluster, service) for service in ("auth", "datasets", "inference")}
    database = _database_certificate(cluster)
    up_since = time.monotonic()
    report.check("every container is as hard as the file says, the kernel agrees", lambda: require_hardened(cluster))
    report.check("networks are split", lambda: require_split_networks(cluster))
    report.check("nothing but volumes can be written", lambda: require_nothing_writable(cluster))
    report.check("PostgreSQL wants TLS 1.3, a certificate and a password", lambda: require_database_shut(cluster))
    told = ToldStory(cluster)
    try:
        if not report.check("the story, by clients outside", told.tell):
            return
        report.check("no library reports home", lambda: require_silent(cluster))
        report.check("what must fail, fails", told.attack)
        report.check("OAuth over HTTPS answers on loopback", told.discover)
        report.check("`buf curl` finds its way by reflection", told.curl)
        report.check("one service is rolled without a failed call", lambda: _roll(cluster, told))
        for service in ("inference", "datasets", "auth", "postgres"):
            report.check(f"{service} is killed and comes back", lambda service=service: _crash(cluster, told, service))
        report.check(
            "certificates of two minutes are outlived", lambda: _outlive(cluster, told, begun, database, up_since)
        )
    finally:
        told.story.close()


def _roll(cluster: ComposeCluster, told: ToldStory) -> str:
    """Two replicas of inference, four callers that never stop; each replica is stopped and started in turn."""
    cluster.up("inference", "inference-2", profile="scale")
    names = ("inference", "inference-2")
    both = "ipv4:" + ",".join(f"127.0.0.1:{cluster.port(name)}" for name in names)
    caller = told.caller()
    session = Session(
        source=caller.source,
        endpoints=Endpoints(auth=caller.endpoints.auth, datasets=caller.endpoints.datasets, inference=both),
        trust_domain=cluster.trust_domain,
    )
    try:
        with Load(session).running() as load:
            for name in names:
                before = load.answered
                cluster.restart(name)
                # The next is only stopped once this one takes its share again.
                _until(lambda name=name: _predictions(cluster, name) > 0, f"{name} takes no calls")
                assert load.answered > before, "nobody was answered meanwhile"
    finally:
        session.close()
    assert not load.failed, dict(load.failed)
    return f"both replicas restarted in turn, {load.answered} calls, 0 failed"


def _predictions(cluster: ComposeCluster, service: str) -> float:
    return predictions_counted(cluster.port(service, "metrics"), cluster.state.client_leaf("casemate", "operator"))


def _crash(cluster: ComposeCluster, told: ToldStory, service: str) -> str:
    """Killed by the kernel's signal; afterwards everything that was acknowledged is there and proven."""
    begun = time.monotonic()
    cluster.crash(service)
    _eventually(told.require_rows)
    _eventually(told.require_answers)
    return f"rows proven and predictions right {time.monotonic() - begun:.1f} s after the kill"


def _outlive(
    cluster: ComposeCluster, told: ToldStory, begun: dict[str, int], database: x509.Certificate, up_since: float
) -> str:
    """Everything that was there at the start has expired; nobody was restarted for it, and calls go on."""
    _until(lambda: time.time() > database.not_valid_after_utc.timestamp() + 1, "the first certificates do not end", 150)
    now = {service: _serial_of(cluster, service) for service in begun}
    assert not set(now.values()) & set(begun.values()), "a service shows its first certificate"
    assert _database_certificate(cluster).serial_number != database.serial_number
    told.require_rows()
    told.require_answers()
    # New connections to PostgreSQL are made with certificates that its first one never saw.
    require_database_shut(cluster)
    return f"{time.monotonic() - up_since:.0f} s after the start"


def _serial_of(cluster: ComposeCluster, service: str) -> int:
    """The serial number of the certificate that a service shows now."""
    leaf = cluster.state.client_leaf("casemate", "operator")
    context = ssl.create_default_context(cafile=str(leaf / "ca.pem"))
    context.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
    name = f"{service}.{cluster.trust_domain}"
    with (
        socket.create_connection(("127.0.0.1", cluster.port(service, "metrics")), 5) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True)).serial_number


def _database_certificate(cluster: ComposeCluster) -> x509.Certificate:
    """What PostgreSQL itself shows, asked as a client asks: its file alone would not say that it was taken up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # dialled by its address
    context.load_verify_locations(cluster.state.client_leaf("casemate", "operator") / "ca.pem")
    with socket.create_connection((database_address(cluster), 5432), 5) as plain:
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain) as secured:
            return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True))


def _down(cluster: ComposeCluster) -> None:
    cluster.down()
    for kind in (("ps", "--all"), ("network", "ls"), ("volume", "ls")):
        left = cluster.engine.docker(
            *kind, "--quiet", "--filter", f"label=com.docker.compose.project={cluster.project}"
        )
        assert not left.strip(), (kind, left)


def _until(condition: Callable[[], bool], otherwise: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.25)


def _eventually(act: Callable[[], None], seconds: float = 40) -> None:
    """Repeats what may fail while a service comes back."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return act()
        except Exception:  # the last one is raised
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
