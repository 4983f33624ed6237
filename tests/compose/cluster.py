"""The cluster of the compose file as somebody outside sees it: ports of loopback, and leaves that were handed out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import tarfile
import tempfile
import threading
import time
from pathlib import Path, PurePosixPath

from casemate.cli.state import StateDirectory
from casemate.client.session import Endpoints
from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource, load_pair
from tests.compose.engine import Engine

ORDER = ("key.pem", "ca.pem", "cert.pem")
"""How a leaf is put in its place: a watcher takes the pair when the certificate changes."""

UNHEALTHY = {"prometheus", "collector", "grafana"}
"""Images of others without a health check of their own."""

CLIENTS = "/var/lib/casemate/issued/clients"
HEALTHY_SECONDS = 300.0
COURIER_SECONDS = 3.0
KINDS = {"grpc": "_PORT", "metrics": "_METRICS_PORT", "https": "_HTTP_PORT"}
PORTS = ("AUTH", "DATASETS", "INFERENCE", "AUTH_2", "DATASETS_2", "INFERENCE_2")
OTHER_PORTS = ("CASEMATE_PROMETHEUS_PORT", "CASEMATE_GRAFANA_PORT")
PROFILES = ("scale", "tools", "observability")


class ComposeCluster:
    """Brings the file up and down. Plays the part of `casemate.cli.cluster.Cluster` for the story.

    Args:
        engine: runs it.
        project: names everything it makes.
        tag: of the images.
        lifetime: of every leaf.
        folder: for the leaves and keys of people outside.
        file: the compose file.
    """

    trust_domain = "casemate.internal"

    def __init__(self, engine: Engine, *, project: str, tag: str, lifetime: str, folder: Path, file: Path) -> None:
        self.engine = engine
        self.project = project
        self.state = StateDirectory(folder)
        self.state.create()
        names = [*self._port_names(), *OTHER_PORTS]
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        engine.environment |= {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": str(file),
            "CASEMATE_VERSION": tag,
            "CASEMATE_LEAF_LIFETIME": lifetime,
            **{name: str(port) for name, port in self.ports.items()},
        }
        self._profiles: set[str] = set()
        self._sources: list[CertificateSource] = []
        self._ended = threading.Event()
        self._courier = threading.Thread(target=self._carry, name="courier", daemon=True)

    @staticmethod
    def _port_names() -> list[str]:
        return [f"CASEMATE_{name}{kind}" for name in PORTS for kind in KINDS.values()]

    def port(self, service: str, kind: str = "grpc") -> int:
        """The port of loopback that one of a service's faces is published on."""
        return self.ports[f"CASEMATE_{service.upper().replace('-', '_')}{KINDS[kind]}"]

    @property
    def endpoints(self) -> Endpoints:
        """Where the first of each service is."""
        return Endpoints(**{name: f"127.0.0.1:{self.port(name)}" for name in ("auth", "datasets", "inference")})

    @property
    def certificates(self) -> ComposeCluster:
        """Itself: the story asks it for clients' leaves."""
        return self

    def up(self, *services: str, profile: str | None = None) -> None:
        """`compose up`, and waits until everything in it is healthy."""
        # What was brought up by a profile stays in sight of the next.
        self._profiles |= {profile} if profile else set()
        self.engine.environment["COMPOSE_PROFILES"] = ",".join(sorted(self._profiles))
        self.engine.compose("up", "--detach", "--no-build", *services)
        for service in services or ("pki", "postgres", "auth", "datasets", "inference"):
            if service not in UNHEALTHY:
                self.wait_healthy(service)
        if not self._courier.is_alive():
            self.fetch_leaves()
            self._courier.start()

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self._ended.set()
        for source in self._sources:
            source.close()
        self.engine.environment["COMPOSE_PROFILES"] = ",".join(PROFILES)
        self.engine.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")

    def container(self, service: str) -> str:
        """The container of a service that runs, or ran."""
        label = f"label=com.docker.compose.service={service}"
        mine = f"label=com.docker.compose.project={self.project}"
        return self.engine.docker("ps", "--all", "--quiet", "--filter", label, "--filter", mine).strip()

    def inspect(self, service: str) -> dict:
        """What the engine says of a container."""
        return json.loads(self.engine.docker("inspect", self.container(service)))[0]

    def wait_healthy(self, service: str) -> None:
        """Waits until the engine finds the container healthy."""
        deadline = time.monotonic() + HEALTHY_SECONDS
        while (state := self.inspect(service)["State"]).get("Health", {}).get("Status") != "healthy" or not state[
            "Running"
        ]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{service} is not healthy: {self.last_words(service)}")
            time.sleep(0.25)

    def last_words(self, service: str) -> str:
        """The end of a container's log."""
        return self.engine.logs(self.container(service))[-1500:]

    def run(self, service: str, *arguments: str) -> str:
        """Runs a container of a service once, beside the others, and gives what it printed."""
        return self.engine.compose("run", "--rm", "--no-deps", "-T", service, *arguments)

    def change_root(self, step: str) -> bool:
        """Takes a step of a change of roots inside; False if it is refused."""
        command = ("python3", "-m", "casemate.cli", "pki", "root", step, "--deployment")
        return self.engine.answers("exec", self.container("pki"), *command)

    def issued_roots(self) -> list[str]:
        """The roots that services inside trust now, in PEM."""
        text = self.read_file("pki", "/var/lib/casemate/issued/auth/service/ca.pem").decode()
        return [f"{one}-----END CERTIFICATE-----" for one in text.split("-----END CERTIFICATE-----")[:-1]]

    def outside_has_roots(self, number: int) -> bool:
        """Whether every client that was carried out trusts so many roots, the one that issues now first."""
        packed = self.read_file("pki", "/var/lib/casemate/authority/ca/cert.pem")
        self.fetch_leaves()
        given = [path.read_bytes() for path in (self.state.root / "pki" / "leaves" / "t").glob("*/*/ca.pem")]
        return bool(given) and all(ca.startswith(packed) and ca.count(b"BEGIN") == number for ca in given)

    def lose(self, *volumes: str) -> None:
        """Removes volumes; nothing may use them any more."""
        self.engine.docker("volume", "rm", *(f"{self.project}_{volume}" for volume in volumes))

    def crash(self, service: str) -> None:
        """Kills the first process of a container as the kernel would; waits until the engine started it again."""
        before = self.inspect(service)
        os.kill(before["State"]["Pid"], 9)
        deadline = time.monotonic() + HEALTHY_SECONDS
        while self.inspect(service)["RestartCount"] == before["RestartCount"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{service} was not started again")
            time.sleep(0.1)
        self.wait_healthy(service)

    def restart(self, service: str) -> None:
        """Stops a container as a roll does, and starts it again."""
        self.engine.docker("stop", "--time", "30", self.container(service))
        self.engine.docker("start", self.container(service))
        self.wait_healthy(service)

    def require_client(self, tenant: str, name: str) -> CertificateSource:
        """The identity of a client, issued by the authority inside and carried out; kept current while we run."""
        folder = self.state.client_leaf(tenant, name)
        if not (folder / "cert.pem").exists():
            pki = self.container("pki")
            self.engine.docker("exec", pki, "python3", "-m", "casemate.cli", "pki", "client", f"{tenant}/{name}")
            deadline = time.monotonic() + HEALTHY_SECONDS
            while not (folder / "cert.pem").exists() and time.monotonic() < deadline:
                self.fetch_leaves()
        source = CertificateSource(folder)
        source.start()
        self._sources.append(source)
        return source

    def read_file(self, service: str, path: str) -> bytes:
        """A file in a container."""
        packed = self.engine.copy_out(self.container(service), path)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return archive.extractfile(archive.next()).read()

    def fetch_leaves(self) -> None:
        """Carries every client's leaf out, the key first."""
        packed = self.engine.copy_out(self.container("pki"), CLIENTS)
        leaves: dict[tuple[str, str], dict[str, bytes]] = {}
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive:
                tenant, client, file = ("", "", *PurePosixPath(member.name).parts)[-3:]
                if member.isfile() and file in ORDER:
                    leaves.setdefault((tenant, client), {})[file] = archive.extractfile(member).read()
        for (tenant, client), files in leaves.items():
            self._put(self.state.client_leaf(tenant, client), files)

    def _put(self, leaf: Path, files: dict[str, bytes]) -> None:
        """Puts a leaf in its place, unless it was caught in the middle of its renewal."""
        if set(files) != set(ORDER) or _holds(leaf, files):
            return
        with tempfile.TemporaryDirectory(dir=self.state.root) as staged:
            for file in ORDER:
                (Path(staged) / file).touch(mode=0o600)
                (Path(staged) / file).write_bytes(files[file])
            with contextlib.suppress(ConfigurationError):
                load_pair(Path(staged))
                leaf.mkdir(parents=True, exist_ok=True)
                for file in ORDER:
                    (Path(staged) / file).rename(leaf / file)

    def _carry(self) -> None:
        while not self._ended.wait(COURIER_SECONDS):
            with contextlib.suppress(OSError, RuntimeError, tarfile.TarError, ValueError):
                self.fetch_leaves()


def _holds(leaf: Path, files: dict[str, bytes]) -> bool:
    return all((leaf / file).exists() and (leaf / file).read_bytes() == files[file] for file in ORDER)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
