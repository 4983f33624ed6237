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
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from casemate.cli.certificates import OPERATOR, Certificates
from casemate.cli.children import DATABASES, Launcher, find_checkout
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory
from casemate.cli.supervisor import Child
from casemate.client.session import Endpoints
from casemate.clock import Clock, SystemClock
from casemate.errors import CasemateError, ConfigurationError
from casemate.storage.embedded import EmbeddedPostgres

RENEWAL_CHECK = timedelta(seconds=60)
"""How often the supervisor looks for leaves past half their life."""

DATABASE_CHECK = timedelta(seconds=1)
"""How often the supervisor looks whether the database lives."""

START_SECONDS = 60.0
"""How long the services may take to become healthy."""


class Cluster:
    """Prepares, starts, watches and stops everything on one state directory.

    Args:
        state: keys, data and logs.
        ports: where to listen.
        trust_domain: the SPIFFE trust domain.
        report: told one line about everything worth a line.
        clock: judges which certificates are due.
        audiences: other teams' services and their scopes, as auth's setting has them.
        inference_workers: processes of inference, on its one port.
    """

    def __init__(
        self,
        *,
        state: StateDirectory,
        ports: Ports,
        trust_domain: str,
        report: Callable[[str], None],
        clock: Clock | None = None,
        audiences: str = "",
        inference_workers: int = 1,
    ) -> None:
        self.state = state
        self.ports = ports
        self.trust_domain = trust_domain
        self._report = report
        self._clock = clock or SystemClock()
        self._audiences = audiences
        self._inference_workers = inference_workers
        self._checkout = find_checkout()
        self.postgres = EmbeddedPostgres(directory=state.postgres)
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
        if self.state.unfinished_restore.exists():
            raise ConfigurationError(
                f"a restore of {self.state.root} was interrupted: say casemate backup restore again"
            )
        self._take_lock()
        try:
            self.ports.require_free()
        except ConfigurationError:
            self._release_lock()
            raise
        self.certificates = Certificates.open(
            self.state, trust_domain=self.trust_domain, report=self._report, clock=self._clock
        )
        self.certificates.renew_due()
        await self._start_database()
        launcher = Launcher(
            state=self.state,
            ports=self.ports,
            trust_domain=self.trust_domain,
            checkout=self._checkout,
            audiences=self._audiences,
            databases={
                name: await self.postgres.ensure_database(name, self.state.password(name))
                for names in DATABASES.values()
                for name in names
            },
            inference_workers=self._inference_workers,
        )
        await self._bootstrap_operator(launcher)
        for service in SERVICES:
            child = Child(launcher.service(service), on_restart=self._restarted)
            self._children.append(child)
            await child.start()
        await self.wait_healthy(starting=True)
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
        self._release_lock()

    async def wait_healthy(self, *, starting: bool = False) -> None:
        """Waits until every service says SERVING.

        Args:
            starting: a service that ends before it was healthy is not waited for.

        Raises:
            ConfigurationError: one did not in time, or ended; says what its log says.
        """
        from casemate.cli.health import serving  # noqa: PLC0415  # loads grpc, which `--help` need not wait for

        if self.certificates is None:
            raise ConfigurationError("the cluster is not started")
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        waiting = set(SERVICES)
        source = self.certificates.operator_source()
        while waiting:
            for service in sorted(waiting):
                if starting and self.child(service).restarts:
                    raise ConfigurationError(f"{service} does not start: {last_message(self.state.log(service))}")
                address = f"127.0.0.1:{self.ports.grpc[service]}"
                if await asyncio.to_thread(serving, address, service, source, self.trust_domain):
                    waiting.discard(service)
            if waiting and asyncio.get_running_loop().time() > deadline:
                name = sorted(waiting)[0]
                raise ConfigurationError(f"{name} did not become healthy: {last_message(self.state.log(name))}")
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

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _start_database(self) -> None:
        used = self._marker.exists()
        try:
            await self.postgres.start(create=not used)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}" + (f"; restore it, or move {self.state.root} away to begin anew" if used else "")
            ) from error

    @property
    def _marker(self) -> Path:
        """Says that this state has had a database with an operator in it."""
        return self.state.root / "operator.bootstrapped"

    async def _bootstrap_operator(self, launcher: Launcher) -> None:
        if self._marker.exists():
            return
        spiffe_id = f"spiffe://{self.trust_domain}/t/{'/'.join(OPERATOR)}"
        command = launcher.service("auth", "bootstrap-operator", "--client-id", OPERATOR[1], "--spiffe-id", spiffe_id)
        process = await asyncio.create_subprocess_exec(
            *command.arguments,
            cwd=command.directory,
            env=dict(command.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines() or ["no output"]
            raise ConfigurationError(f"the first operator could not be made: {lines[-1]}")
        self._marker.touch()

    def _announcement(self) -> dict[str, object]:
        return {
            "trust_domain": self.trust_domain,
            "grpc": dict(self.ports.grpc),
            "http": dict(self.ports.http),
            "metrics": dict(self.ports.metrics),
            "supervisor": os.getpid(),
        }

    def _restarted(self, service: str, status: int) -> None:
        if not self._tasks:
            return  # still starting: `wait_healthy` says it
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        self._report(f"{service} ended ({ended}) and is started again; its log: {self.state.log(service)}")

    async def _renew(self) -> None:
        while self.certificates is not None:
            await asyncio.sleep(RENEWAL_CHECK.total_seconds())
            try:
                await asyncio.to_thread(self.certificates.renew_due)
            except (CasemateError, OSError) as error:
                # Half a life is left: the next looks may find the disk with room again.
                self._report(f"certificates were not renewed, and will be tried again: {error}")

    async def _keep_database(self) -> None:
        while True:
            await asyncio.sleep(DATABASE_CHECK.total_seconds())
            if self.postgres.pid is not None:
                continue
            self._report("the database ended and is started again")
            try:
                await self.postgres.stop()
                await self.postgres.start(create=False)
            except CasemateError as error:
                # Ended again while it recovered, perhaps: whatever it was, the next look tries anew.
                self._report(f"the database did not start, and will be tried again: {str(error).splitlines()[-1]}")


def last_message(log: Path) -> str:
    """The last thing that a log says, and where it is."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = lines[-1] if lines else "nothing was said"
    with contextlib.suppress(ValueError, TypeError, KeyError):
        last = json.loads(last)["message"]
    return f"{last.strip()[:400]} (log: {log})"
