"""The whole of Casemate on one machine: keys, certificates, database, three services.

`casemate up` runs it on `.casemate/`, `casemate demo` on throw-away state. It needs
a checkout, because the services are applications and not part of the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TextIO

import casemate
from casemate.cli.certificates import Certificates
from casemate.cli.state import METRICS_PORTS, PORTS, SERVICES, StateDirectory
from casemate.cli.supervisor import Child, ChildCommand
from casemate.client.session import Endpoints
from casemate.clock import Clock, SystemClock
from casemate.errors import CasemateError, ConfigurationError
from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

RENEWAL_CHECK = timedelta(seconds=60)
"""How often the supervisor looks for leaves past half their life."""

DATABASE_CHECK = timedelta(seconds=1)
"""How often the supervisor looks whether the database lives."""

START_SECONDS = 60.0
"""How long the services may take to become healthy."""

DATABASES = {"auth": ("casemate_auth",), "datasets": ("casemate_datasets", "casemate_datakeys"), "inference": ()}
"""Each database has one role, of the same name, that can reach no other."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services listen, on loopback."""

    grpc: Mapping[str, int]
    metrics: Mapping[str, int]

    @classmethod
    def fixed(cls) -> Ports:
        """The documented ports."""
        return cls(PORTS, METRICS_PORTS)

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses at this moment."""
        with contextlib.ExitStack() as held:
            numbers = []
            for _ in range(2 * len(SERVICES)):
                listener = held.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                numbers.append(listener.getsockname()[1])
        return cls(
            dict(zip(SERVICES, numbers[: len(SERVICES)], strict=True)),
            dict(zip(SERVICES, numbers[len(SERVICES) :], strict=True)),
        )

    def require_free(self) -> None:
        """Refuses to start beside somebody who listens already.

        Raises:
            ConfigurationError: names the ports in use, all at once.
        """
        taken = [str(port) for port in (*self.grpc.values(), *self.metrics.values()) if _in_use(port)]
        if taken:
            raise ConfigurationError(f"in use by another process: port {', '.join(taken)}; stop it and start again")


def _in_use(port: int) -> bool:
    with socket.socket() as listener:
        # As the services bind: without this, connections of a predecessor that are in TIME_WAIT
        # would look like a listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def find_checkout() -> Path:
    """The checkout that this installation runs from.

    Raises:
        ConfigurationError: this is an installed library, without the services.
    """
    root = Path(casemate.__file__).resolve().parents[2]
    if not (root / "services" / "auth" / "__main__.py").is_file():
        raise ConfigurationError("`up` and `demo` run from a checkout of Casemate: clone it and say `make run`")
    return root


class Cluster:
    """Prepares, starts, watches and stops everything on one state directory.

    Args:
        state: keys, data and logs.
        ports: where to listen.
        trust_domain: the SPIFFE trust domain.
        report: told one line about everything worth a line.
        clock: judges which certificates are due.
    """

    def __init__(
        self,
        *,
        state: StateDirectory,
        ports: Ports,
        trust_domain: str,
        report: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self.state = state
        self.ports = ports
        self.trust_domain = trust_domain
        self._report = report
        self._clock = clock or SystemClock()
        self._checkout = find_checkout()
        self.postgres = EmbeddedPostgres(directory=state.postgres)
        self._databases: dict[str, DatabaseSettings] = {}
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lock: TextIO | None = None
        self.certificates: Certificates | None = None

    @property
    def started(self) -> bool:
        """Whether there is anything of ours to stop."""
        return self._lock is not None

    @property
    def endpoints(self) -> Endpoints:
        """Addresses of the three services."""
        return Endpoints(**{name: f"127.0.0.1:{port}" for name, port in self.ports.grpc.items()})

    async def start(self) -> None:
        """Brings everything up; returns when all three services are healthy.

        Raises:
            ConfigurationError: one line about what is in the way.
        """
        self.state.create()
        self.ports.require_free()
        self._take_lock()
        self.certificates = Certificates.open(
            self.state, trust_domain=self.trust_domain, report=self._report, clock=self._clock
        )
        self.certificates.renew_due()
        await self.postgres.start()
        for name in (name for names in DATABASES.values() for name in names):
            self._databases[name] = await self.postgres.ensure_database(name, self.state.password(name))
        await self._bootstrap_operator()
        for service in SERVICES:
            child = Child(self._command(service), on_restart=self._restarted)
            self._children.append(child)
            await child.start()
        await self.wait_healthy()
        self.state.endpoints.write_text(json.dumps(self._announcement(), indent=1))
        self._tasks = [
            asyncio.create_task(self._renew(), name="renew certificates"),
            asyncio.create_task(self._keep_database(), name="keep the database running"),
        ]

    async def stop(self) -> None:
        """Stops the services, then the database; leaves no process and loses no data."""
        if self._lock is None:
            return  # nothing was started; what runs here is somebody else's
        self.state.endpoints.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(child.stop() for child in self._children))
        await self.postgres.stop()
        self._lock.close()
        self._lock = None

    async def wait_healthy(self) -> None:
        """Waits until every service says SERVING.

        Raises:
            ConfigurationError: one did not in time; names its log.
        """
        from casemate.cli.health import serving  # noqa: PLC0415  # loads grpc, which `--help` need not wait for

        assert_ready = self.certificates
        if assert_ready is None:
            raise ConfigurationError("the cluster is not started")
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        waiting = set(SERVICES)
        source = assert_ready.operator_source()
        while waiting:
            for service in sorted(waiting):
                address = f"127.0.0.1:{self.ports.grpc[service]}"
                if await asyncio.to_thread(serving, address, service, source, self.trust_domain):
                    waiting.discard(service)
            if waiting and asyncio.get_running_loop().time() > deadline:
                name = sorted(waiting)[0]
                last = _last_line(self.state.log(name))
                raise ConfigurationError(f"{name} did not become healthy; its log {self.state.log(name)} ends: {last}")
            await asyncio.sleep(0.05)

    def child(self, service: str) -> Child:
        """The supervised process of a service."""
        return next(child for child in self._children if child.command.name == service)

    def _take_lock(self) -> None:
        # A lock of the kernel, not a file with a number in it: it cannot be stale.
        lock = self.state.lock.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise ConfigurationError(f"already running on {self.state.root} (process {owner})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    async def _bootstrap_operator(self) -> None:
        marker = self.state.root / "operator.bootstrapped"
        if marker.exists():
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.auth",
            "bootstrap-operator",
            "--client-id",
            "operator",
            "--spiffe-id",
            f"spiffe://{self.trust_domain}/t/casemate/operator",
            cwd=self._checkout,
            env=self._environment("auth"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines() or ["no output"]
            raise ConfigurationError(f"the first operator could not be made: {lines[-1]}")
        marker.touch()

    def _command(self, service: str) -> ChildCommand:
        return ChildCommand(
            name=service,
            arguments=(sys.executable, "-m", f"services.{service}"),
            environment=self._environment(service),
            directory=self._checkout,
            log=self.state.log(service),
        )

    def _environment(self, service: str) -> dict[str, str]:
        """All that a child gets: nothing of the caller's environment but the path and the locale."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "HOME") if name in os.environ}  # noqa: TID251  # what a shell would pass on
        prefix = f"CASEMATE_{service.upper()}"
        values = {
            CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
            "PYTHONPATH": str(self._checkout),
            "PYTHONUNBUFFERED": "1",
            "CASEMATE_TRUST_DOMAIN": self.trust_domain,
            f"{prefix}_LISTEN": f"127.0.0.1:{self.ports.grpc[service]}",
            f"{prefix}_METRICS_LISTEN": f"127.0.0.1:{self.ports.metrics[service]}",
            f"{prefix}_IDENTITY_DIR": str(self.state.service_leaf(service)),
            f"{prefix}_KEK_FILE": str(self.state.kek(service)),
            f"{prefix}_AUDIT_FILE": str(self.state.audit(service)),
        }
        if service != "auth":
            values[f"{prefix}_AUTH_ADDRESS"] = f"127.0.0.1:{self.ports.grpc['auth']}"
        if service == "inference":
            values[f"{prefix}_DATASETS_ADDRESS"] = f"127.0.0.1:{self.ports.grpc['datasets']}"
            values[f"{prefix}_REPOSITORY_DIR"] = str(self.state.repository)
        for name in DATABASES[service]:
            database = "DATAKEYS_DATABASE" if name == "casemate_datakeys" else "DATABASE"
            values.update(self._database_environment(f"{prefix}_{database}", name))
        return {**kept, **values}

    def _database_environment(self, prefix: str, name: str) -> Iterator[tuple[str, str]]:
        settings = self._databases[name]
        yield f"{prefix}_HOST", settings.host
        yield f"{prefix}_PORT", str(settings.port)
        yield f"{prefix}_NAME", settings.name
        yield f"{prefix}_USER", settings.user
        yield f"{prefix}_PASSWORD_FILE", str(self.state.password_file(name))

    def _announcement(self) -> dict[str, object]:
        return {
            "trust_domain": self.trust_domain,
            "grpc": dict(self.ports.grpc),
            "metrics": dict(self.ports.metrics),
            "supervisor": os.getpid(),
        }

    def _restarted(self, service: str, status: int) -> None:
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        self._report(f"{service} ended ({ended}) and is started again; its log: {self.state.log(service)}")

    async def _renew(self) -> None:
        while self.certificates is not None:
            await asyncio.sleep(RENEWAL_CHECK.total_seconds())
            await asyncio.to_thread(self.certificates.renew_due)

    async def _keep_database(self) -> None:
        while True:
            await asyncio.sleep(DATABASE_CHECK.total_seconds())
            if self.postgres.pid is not None:
                continue
            self._report("the database ended and is started again")
            try:
                await self.postgres.stop()
                await self.postgres.start()
            except CasemateError as error:
                # Ended again while it recovered, perhaps: whatever it was, the next look tries anew.
                self._report(f"the database did not start, and will be tried again: {str(error).splitlines()[-1]}")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "(nothing)"
    return lines[-1][:400] if lines else "(nothing)"
