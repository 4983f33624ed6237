"""What the token service does in a second, and how soon a revocation is everywhere: `make bench-auth`.

A real process of auth over a real PostgreSQL (durable: fsync on), asked over mutual
TLS by one client in this process. Load and server share the machine's cores, so
what is quoted per core is reckoned from the processor time of auth's own process.
Revocations are timed from the administrator's call to the trust state of three
followers, from which a gate refuses with its next call.

With OIDC_PROVIDER=<folder with node_modules/oidc-provider>, node's oidc-provider does
the same work in the same run.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from bench.auth_peer import oidc_provider
from bench.report import Result, publish
from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.clock import SystemClock
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.local import LocalKeyRing
from casemate.secret import Secret
from casemate.storage.embedded import EmbeddedPostgres
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

DOMAIN: Final = "casemate.internal"
SECONDS: Final = 8.0
CALLERS: Final = (1, 32)
REVOCATIONS: Final = 200
REPLICAS: Final = 3
OPERATOR: Final = f"spiffe://{DOMAIN}/t/casemate/operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running auth."""

    pid: int
    port: int
    directory: Path
    start_s: float


async def main(*, as_json: bool, peer: Path | None) -> None:
    """Measures everything once and prints it; beside the peer, where a folder with it is given."""
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        if os.geteuid() == 0:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103  # PostgreSQL is another user, and only passes through
        async with _auth(directory) as served:
            results = [Result("cold start to serving", served.start_s, "s", "≤ 2", met=served.start_s <= 2)]
            own = await _throughput(served)
            results += own
            if peer is not None:
                results += await _beside(peer, own)
            results += await _revocations(served)
    publish("auth", results, as_json=as_json)


async def _beside(folder: Path, own: list[Result]) -> list[Result]:
    """The same work by node's oidc-provider, in turn with ours."""
    results: list[Result] = []
    async with oidc_provider(folder) as peer, AsyncExitStack() as stack:
        for callers in CALLERS:
            calls = [await peer.connect(stack) for _ in range(callers)]
            name = f"oidc-provider issued, {callers} at once"
            found = await _measure(peer.pid, name, calls)
            ours = next(one for one in own if one.name == f"tokens issued, {callers} at once, per core of auth")
            ahead = ours.value / found[1].value
            goal = Result(f"ours beside it per core, {callers} at once", ahead, "×", "> 1", met=ahead > 1)
            results += [*found, goal]
    return results


async def _throughput(served: Served) -> list[Result]:
    results = []
    async with _channel(served, "operator") as channel:
        stub = TokenServiceStub(channel)
        issued = await stub.IssueToken(tokens.IssueTokenRequest(audience="auth"))

        async def issue() -> None:
            await stub.IssueToken(tokens.IssueTokenRequest(audience="auth"))

        async def introspect() -> None:
            answer = await stub.IntrospectToken(tokens.IntrospectTokenRequest(token=issued.access_token))
            assert answer.active

        for name, call in (("issued", issue), ("introspected", introspect)):
            for callers in CALLERS:
                results += await _measure(
                    served.pid, f"tokens {name}, {callers} at once", [call] * callers, of=" of auth"
                )
    return results


async def _measure(
    pid: int, name: str, calls: Sequence[Callable[[], Awaitable[None]]], *, of: str = ""
) -> list[Result]:
    """Every call again and again, all at once; how many a second, and how many for a second of the process's time."""
    took: list[float] = []
    began, busy = time.perf_counter(), _processor_seconds(pid)

    async def work(call: Callable[[], Awaitable[None]]) -> None:
        while time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            await call()
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(work(call) for call in calls))
    spent = _processor_seconds(pid) - busy
    elapsed = time.perf_counter() - began
    return [
        Result(name, len(took) / elapsed, "1/s"),
        Result(f"{name}, per core{of}", len(took) / spent, "1/s"),
        Result(f"{name}, p99", _percentile(took, 99) * 1000, "ms"),
    ]


async def _revocations(served: Served) -> list[Result]:
    async with _channel(served, "operator") as channel:
        token = (await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))).access_token
        metadata = (("authorization", f"Bearer {token}"),)
        replicas = [Replica(served, number) for number in range(REPLICAS)]
        try:
            while not all(replica.state.current.keys for replica in replicas):  # noqa: ASYNC110  # set by other threads
                await asyncio.sleep(0.05)
            took = []
            for _ in range(REVOCATIONS):
                value = secrets.token_hex(16)
                start = time.perf_counter()
                request = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value=value)
                await AdminServiceStub(channel).Revoke(request, metadata=metadata)
                while not all(value in replica.seen for replica in replicas):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.001)
                took += [replica.seen[value] - start for replica in replicas]
        finally:
            for replica in replicas:
                await asyncio.to_thread(replica.close)
    p99, most = _percentile(took, 99) * 1000, max(took) * 1000
    name = f"revocation seen by {REPLICAS} warm replicas"
    return [
        Result(f"{name}, median", statistics.median(took) * 1000, "ms"),
        Result(f"{name}, p99", p99, "ms", "≤ 250", met=p99 <= 250),
        Result(f"{name}, longest", most, "ms", "≤ 1000", met=most <= 1000),
    ]


class Replica:
    """What a protected service knows, by the feed that it follows."""

    def __init__(self, served: Served, number: int) -> None:
        leaf = served.directory / "leaves" / ("inference" if number % 2 else "datasets")
        self._source = CertificateSource(leaf)
        self._channel = RotatingChannel(target=f"127.0.0.1:{served.port}", service_name="auth", source=self._source)
        self.state = TrustState()
        self.seen: dict[str, float] = {}
        self.state.subscribe(self._look)
        self._feed = TrustFeed(self._channel, self.state, SystemClock())
        self._feed.start()

    def _look(self, snapshot: TrustSnapshot) -> None:
        now = time.perf_counter()
        for revocation in snapshot.revocations.by_id.values():
            self.seen.setdefault(revocation.value, now)

    def close(self) -> None:
        """Stops following."""
        self._feed.close()
        self._channel.close()
        self._source.close()


@asynccontextmanager
async def _auth(directory: Path) -> AsyncIterator[Served]:
    """The service as it is run, over an embedded database that keeps what it acknowledged."""
    server = EmbeddedPostgres(directory=directory / "postgres")
    await server.start()
    try:
        password = secrets.token_urlsafe(24)
        database = await server.ensure_database("auth", Secret(password))
        _write_leaves(directory)
        LocalKeyRing.create(directory / "kek.json")
        (directory / "password").touch(mode=0o600)
        (directory / "password").write_text(password)
        environment = {
            CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "CASEMATE_AUTH_LISTEN": "127.0.0.1:0",
            "CASEMATE_AUTH_METRICS_LISTEN": "127.0.0.1:0",
            "CASEMATE_AUTH_HTTP_LISTEN": "127.0.0.1:0",
            "CASEMATE_AUTH_IDENTITY_DIR": str(directory / "leaves" / "auth"),
            "CASEMATE_AUTH_DATABASE_HOST": database.host,
            "CASEMATE_AUTH_DATABASE_PORT": str(database.port),
            "CASEMATE_AUTH_DATABASE_NAME": database.name,
            "CASEMATE_AUTH_DATABASE_USER": database.user,
            "CASEMATE_AUTH_DATABASE_PASSWORD_FILE": str(directory / "password"),
            "CASEMATE_AUTH_KEK_FILE": str(directory / "kek.json"),
            "CASEMATE_AUTH_AUDIT_FILE": str(directory / "audit.jsonl"),
        }
        first = ("bootstrap-operator", "--client-id", "operator", "--spiffe-id", OPERATOR)
        made = await _start(environment, *first)
        await made.communicate()
        began = time.perf_counter()
        process = await _start(environment)
        try:
            port = await _port(process)
            start_s = time.perf_counter() - began
            reading = asyncio.create_task(_swallow(process))
            yield Served(pid=process.pid, port=port, directory=directory, start_s=start_s)
        finally:
            process.terminate()
            await process.wait()
            await reading
    finally:
        await server.erase()


async def _start(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.auth", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        found = re.search(rb"ready: rpcs on port (\d+)", line)
        if found:
            return int(found[1])
    raise RuntimeError("auth ended before it was ready")


async def _swallow(process: asyncio.subprocess.Process) -> None:
    """Reads what the service logs, so that it never waits for a reader."""
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass


def _write_leaves(directory: Path) -> None:
    (directory / "ca").mkdir()
    ring = LocalKeyRing.create(directory / "ca-kek.json")
    authority = CertificateAuthority.create(
        directory / "ca", trust_domain=DOMAIN, key_encryption=ring, clock=SystemClock()
    )
    for service in ("auth", "datasets", "inference"):
        write_leaf(authority.issue_service(service=service), directory / "leaves" / service)
    write_leaf(authority.issue_client(tenant="casemate", name="operator"), directory / "leaves" / "operator")


@asynccontextmanager
async def _channel(served: Served, leaf: str) -> AsyncIterator[Any]:
    folder = served.directory / "leaves" / leaf
    credentials = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    options = (("grpc.ssl_target_name_override", f"auth.{DOMAIN}"), ("grpc.enable_http_proxy", 0))
    async with grpc.aio.secure_channel(f"127.0.0.1:{served.port}", credentials, options) as channel:
        yield channel


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    given = os.environ.get("OIDC_PROVIDER")  # noqa: TID251  # where it enters
    as_json = bool(os.environ.get("JSON"))  # noqa: TID251  # as above
    asyncio.run(main(as_json=as_json, peer=None if given is None else Path(given)))
