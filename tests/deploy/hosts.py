"""Hosts on one machine: a network namespace each, joined by a bridge, with the services of a cluster on them.

The test stands on the bridge itself, as a client outside. PostgreSQL is reached by its Unix socket, which
namespaces of the network share; models by the folder, as replicas share a bucket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from casemate.cli.children import DATABASES, Launcher
from casemate.cli.cluster import Cluster
from casemate.cli.health import serving
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.story import Story
from casemate.client.session import Endpoints, Session
from casemate.errors import CasemateError
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.status import from_rpc_error

PORTS = {"auth": 7401, "inference": 7402, "datasets": 7403}
STALENESS = "5s"
START_SECONDS = 60.0


def require_namespaces() -> None:
    """Skips, and says so, where hosts cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("SKIPPED, AND NO HOST WAS LOST: network namespaces need root and iproute2")


def ip(*arguments: str) -> None:
    """One command of iproute2's."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)  # our own words
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(slots=True)
class Host:
    """One replica on a host of its own."""

    service: str
    name: str
    address: str
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the service; `Hosts.wait_serving` waits for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # our own service
                ["ip", "netns", "exec", self.name, sys.executable, "-m", f"services.{self.service}"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and waits; gives its status. `ip netns exec` replaces itself, so the signal is the service's."""
        if self.process is None:
            raise RuntimeError("it does not run")
        self.process.send_signal(how)
        status = self.process.wait(timeout=30)
        self.process = None
        return status


@dataclass(slots=True)
class Hosts:
    """A cluster whose replicas stand on hosts."""

    hosts: list[Host]
    cluster: Cluster
    story: Story
    source: CertificateSource
    sessions: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def of(self, service: str) -> list[Host]:
        """Its replicas."""
        return [host for host in self.hosts if host.service == service]

    def target(self, service: str) -> str:
        """All its replicas, as a client of gRPC goes round them."""
        return "ipv4:" + ",".join(f"{host.address}:{PORTS[service]}" for host in self.of(service))

    def session(self, name: str) -> Session:
        """A client of the story's, outside."""
        if self.cluster.certificates is None:
            raise RuntimeError("the cluster is not prepared")
        endpoints = Endpoints(**{service: self.target(service) for service in PORTS})
        session = Session(
            source=self.cluster.certificates.require_client("acme", name),
            endpoints=endpoints,
            trust_domain=self.cluster.trust_domain,
        )
        self.sessions.callback(session.close)
        return session

    def wait_serving(self, *hosts: Host) -> None:
        """Waits until each says that it serves."""
        until = time.monotonic() + START_SECONDS
        for host in hosts or tuple(self.hosts):
            address = f"{host.address}:{PORTS[host.service]}"
            while not serving(address, host.service, self.source, self.cluster.trust_domain):
                if time.monotonic() > until:
                    raise RuntimeError(f"{host.name} does not serve: {host.log.read_text()[-800:]}")
                time.sleep(0.05)

    def wait_connected(self, host: Host) -> None:
        """Waits until somebody's connection to it stands: it is there for the callers again, and not only for us."""
        until = time.monotonic() + START_SECONDS
        port = f":{PORTS[host.service]:04X}"
        while host.process is not None:
            # gRPC's sockets are of IPv6, whatever they are bound to.
            table = [
                row
                for name in ("tcp", "tcp6")
                for row in Path(f"/proc/{host.process.pid}/net/{name}").read_text().splitlines()[1:]
            ]
            if any(row.split()[1].endswith(port) and row.split()[3] == "01" for row in table):
                return
            if time.monotonic() > until:
                raise RuntimeError(f"nobody came back to {host.name}")
            time.sleep(0.02)

    def part(self, one: str, other: str) -> None:
        """From now on nothing of `one`'s hosts reaches `other`'s, and no answer comes back: silence, no refusal."""
        self._routes("add", one, other)

    def join(self, one: str, other: str) -> None:
        """Undoes `part`."""
        self._routes("del", one, other)

    def _routes(self, verb: str, one: str, other: str) -> None:
        for near in self.of(one):
            for far in self.of(other):
                ip("-n", near.name, "route", verb, "blackhole", f"{far.address}/32")
                ip("-n", far.name, "route", verb, "blackhole", f"{near.address}/32")

    def unplug(self, host: Host) -> None:
        """Its cable is out."""
        ip("-n", host.name, "link", "set", "eth0", "down")


@contextlib.asynccontextmanager
async def cluster_on_hosts(folder: Path):  # type: ignore[no-untyped-def]  # an async generator of Hosts
    """Two auths, one datasets, two inferences, each on a host; the story is told and a model is served."""
    cluster = Cluster(
        state=StateDirectory(folder / "state"),
        ports=Ports.free(),
        trust_domain="casemate.internal",
        report=lambda _line: None,
    )
    story = Story(cluster)
    tag = f"{os.getpid() % 0xFFFF:x}"
    try:
        await cluster.start()
        await asyncio.to_thread(story.tell)
        await asyncio.gather(*(cluster.child(service).stop() for service in PORTS))
        with _namespaces(tag) as names:
            hosts = [host async for host in _placed(cluster, names)]
            certificates = cluster.certificates
            assert certificates is not None
            made = Hosts(hosts=hosts, cluster=cluster, story=story, source=certificates.operator_source())
            try:
                for host in hosts:
                    host.start()
                await asyncio.to_thread(made.wait_serving)
                yield made
            finally:
                made.sessions.close()
                for host in hosts:
                    if host.process is not None:
                        host.end(signal.SIGKILL)
    finally:
        await asyncio.to_thread(story.close)
        await cluster.stop()
        await cluster.postgres.erase()


LAYOUT = (("auth", 11), ("auth", 12), ("datasets", 21), ("inference", 31), ("inference", 32))


@contextlib.contextmanager
def _namespaces(tag: str) -> Iterator[dict[tuple[str, int], str]]:
    """The bridge, and a namespace for each place of the layout."""
    switch, names = f"cm{tag}-switch", {place: f"cm{tag}-{place[0]}-{place[1]}" for place in LAYOUT}
    lines = [f"10.203.77.{number} {service}.hosts\n" for service, number in LAYOUT]
    with contextlib.ExitStack() as stack:
        # The bridge has a namespace of its own, where nobody else's packet filter decides what is bridged.
        ip("netns", "add", switch)
        stack.callback(ip, "netns", "del", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        outside = f"cm{tag}"
        ip("link", "add", outside, "type", "veth", "peer", "name", "outside", "netns", switch)
        ip("-n", switch, "link", "set", "outside", "master", "bridge", "up")
        ip("addr", "add", "10.203.77.1/24", "dev", outside)
        ip("link", "set", outside, "up")
        for (_service, number), name in names.items():
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            # What is in its folder covers /etc/hosts there: names with every address, as a headless Service has.
            extra = Path("/etc/netns") / name
            extra.mkdir(parents=True)
            stack.callback(shutil.rmtree, extra)
            (extra / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
            ip("-n", switch, "link", "add", f"host{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", f"host{number}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.203.77.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names


async def _placed(cluster: Cluster, names: dict[tuple[str, int], str]):  # type: ignore[no-untyped-def]  # as above
    databases = {
        name: await cluster.postgres.ensure_database(name, cluster.state.password(name))
        for owned in DATABASES.values()
        for name in owned
    }
    checkout = Path(__file__).parents[2]
    launcher = Launcher(
        state=cluster.state,
        ports=cluster.ports,
        trust_domain=cluster.trust_domain,
        checkout=checkout,
        databases=databases,
    )
    for (service, number), name in names.items():
        address, prefix = f"10.203.77.{number}", f"CASEMATE_{service.upper()}"
        environment = dict(launcher.service(service).environment)
        environment |= {
            f"{prefix}_LISTEN": f"{address}:{PORTS[service]}",
            f"{prefix}_METRICS_LISTEN": f"{address}:7499",
            f"{prefix}_AUDIT_FILE": str(cluster.state.audit(service).with_name(f"{name}.jsonl")),
            "CASEMATE_TRUST_STALENESS": STALENESS,
        }
        if f"{prefix}_HTTP_LISTEN" in environment:
            environment[f"{prefix}_HTTP_LISTEN"] = f"{address}:7404"
        for other in ("auth", "datasets"):
            if f"{prefix}_{other.upper()}_ADDRESS" in environment:
                environment[f"{prefix}_{other.upper()}_ADDRESS"] = f"{other}.hosts:{PORTS[other]}"
        yield Host(
            service=service,
            name=name,
            address=address,
            environment=environment,
            log=cluster.state.log(service).with_name(f"{name}.log"),
        )


class Callers:
    """Threads that ask the digits model without end, and count what they are told.

    They call as any generated stub would, over a channel of ours: it goes round the replicas, watches their
    health, and asks another when one cannot be reached.
    """

    def __init__(self, hosts: Hosts, pixels: NDArray[np.float32], *, threads: int = 8) -> None:
        self._session = hosts.session("caller")
        self._channel = RotatingChannel(
            target=hosts.target("inference"),
            service_name=self._session.service_name("inference"),
            source=self._session.source,
            idempotent_methods=frozenset({"/inference.GRPCInferenceService/ModelInfer"}),
            default_deadline=timedelta(seconds=10),
            call_metadata=lambda _pair: self._session.metadata("inference"),
        )
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._request = service_pb2.ModelInferRequest(
            model_name="digits",
            inputs=[
                service_pb2.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=list(pixels.shape))
            ],
            raw_input_contents=[pixels.tobytes()],
        )
        self._answers: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, name=f"caller {number}") for number in range(threads)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()

    def taken(self) -> Counter[str]:
        """What was counted since the last look."""
        with self._lock:
            seen, self._answers = self._answers, Counter()
        return seen

    def wait_for(self, answer: str, *, times: int = 50, seconds: float = 60.0) -> Counter[str]:
        """What was counted until `answer` came so often since now."""
        seen = Counter[str]()
        until = time.monotonic() + seconds
        while seen[answer] < times:
            if time.monotonic() > until:
                raise AssertionError(f"{answer} came {seen[answer]} times in {seconds} s: {dict(seen)}")
            time.sleep(0.02)
            seen += self.taken()
        return seen

    def _ask(self) -> None:
        while not self._ending.is_set():
            try:
                self._infer(self._request)
            except grpc.RpcError as error:
                told = from_rpc_error(error)
                answer = told.code.name
            except CasemateError as error:  # no token to be had
                answer = f"token: {type(error).__name__}"
            else:
                answer = "OK"
            with self._lock:
                self._answers[answer] += 1
            if answer != "OK":
                self._ending.wait(0.01)  # a refusal costs nothing, and would be all that is counted
