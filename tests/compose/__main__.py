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
from tests.compose.load import metrics_page
from tests.compose.recovery import Recovery
from tests.compose.scaling import Pairs
from tests.compose.story import ToldStory
from tests.compose.waiting import eventually, until
from tests.compose.watching import Prometheus, require_rules_hold

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
                _check_cluster(cluster, images, report)
        finally:
            report.check("`compose down` leaves no container, network or volume", lambda: _down(cluster))
    finally:
        images.remove()
        if made.made:
            found.docker("image", "rm", "--force", *made.made, check=False)
        folder.cleanup()


def _build(images: Images, report: Report) -> None:
    for target in (*IMAGES, "backup", "postgres", *images.watchers):
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
    report.check("with the capability `aws`, inference has S3 and KMS", images.require_capable)
    report.check(
        "rules and alerts pass promtool, and its tests of them",
        lambda: require_rules_hold(images.engine, images.name("prometheus"), images.context),
    )


def _check_cluster(cluster: ComposeCluster, images: Images, report: Report) -> None:
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
        pairs = Pairs(cluster, told)
        if report.check("profile scale: two of each take calls", pairs.up):
            report.check("every replica is rolled without a failed call", pairs.roll)
            report.check("every replica is killed without a failed call", pairs.kill)
        _check_watched(cluster, told, images, report)
        for service in ("inference", "datasets", "auth", "postgres"):
            report.check(f"{service} is killed and comes back", lambda service=service: _crash(cluster, told, service))
        report.check(
            "certificates of two minutes are outlived", lambda: _outlive(cluster, told, begun, database, up_since)
        )
        report.check("the root is changed without a failed call", lambda: _change_root(cluster, pairs))
        recovery = Recovery(cluster, told)
        if report.check("a backup is made and verified while all goes on", recovery.back_up):
            report.check("it was dumped by TLS 1.3 and certificates", recovery.require_dumped_by_certificate)
            report.check("everything is lost, and comes back", recovery.lose_everything)
    finally:
        told.story.close()


def _check_watched(cluster: ComposeCluster, told: ToldStory, images: Images, report: Report) -> None:
    prometheus = Prometheus(cluster, images.context)
    cluster.up(*images.watchers, profile="observability")
    if "grafana" not in images.watchers:
        report.say("        NOT RUN: collector and Grafana, whose images no registry gives here and Debian has not")
    if report.check("Prometheus scrapes both of each by mutual TLS", lambda: prometheus.require_sees(2)):
        # What was refused before was counted by processes that were rolled and killed since.
        told.attack()
        report.check("metrics are shown to no stranger", lambda: _require_shut_metrics(cluster))
        report.check("its rules are known and evaluated", prometheus.require_rules_known)
        report.check("every metric that is asked for is there", prometheus.require_metrics_exist)
        report.check("every panel of the dashboard shows something", prometheus.require_dashboard_filled)
        report.check("the autoscaler's query says how long predictions waited", prometheus.require_scaled_by_the_queue)
    if "grafana" in images.watchers:
        report.check("Grafana has the dashboard, the collector runs", prometheus.require_shown)


def _require_shut_metrics(cluster: ComposeCluster) -> None:
    leaf = cluster.state.client_leaf("casemate", "operator")
    for service in ("auth", "datasets", "inference"):
        port = cluster.port(service, "metrics")
        assert "casemate_calls_total" in metrics_page(port, service, leaf, shown=leaf)
        try:
            page = metrics_page(port, service, leaf, shown=None)
        except OSError:
            continue
        raise AssertionError(f"{service} shows its metrics to a stranger: {page[:80]}")


def _change_root(cluster: ComposeCluster, pairs: Pairs) -> str:
    """Three steps by command, beside the process that keeps the leaves; each reaches everybody before the next."""
    roots = cluster.issued_roots()
    with pairs.load() as load:
        for step, trusted in (("prepare", 2), ("switch", 2), ("finish", 1)):
            # Refused until everybody has the last step; then it is taken.
            until(lambda step=step: cluster.change_root(step), f"{step} is refused", 60)
            until(lambda n=trusted: cluster.outside_has_roots(n), "clients outside have other roots", 60)
    assert not set(roots) & set(cluster.issued_roots()), "an old root is trusted"
    require_database_shut(cluster)
    return pairs.held(load)


def _crash(cluster: ComposeCluster, told: ToldStory, service: str) -> str:
    """Killed by the kernel's signal; afterwards everything that was acknowledged is there and proven."""
    begun = time.monotonic()
    cluster.crash(service)
    eventually(told.require_rows)
    eventually(told.require_answers)
    return f"rows proven and predictions right {time.monotonic() - begun:.1f} s after the kill"


def _outlive(
    cluster: ComposeCluster, told: ToldStory, begun: dict[str, int], database: x509.Certificate, up_since: float
) -> str:
    """Everything that was there at the start has expired; nobody was restarted for it, and calls go on."""
    until(lambda: time.time() > database.not_valid_after_utc.timestamp() + 1, "the first certificates do not end", 150)
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


if __name__ == "__main__":
    sys.exit(main())
