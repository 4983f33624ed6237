"""A real process of auth over a real PostgreSQL (durable: fsync on), for the benches of the token service."""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from casemate.clock import SystemClock
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.local import LocalKeyRing
from casemate.secret import Secret
from casemate.storage.embedded import EmbeddedPostgres
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

DOMAIN: Final = "casemate.internal"
OPERATOR: Final = f"spiffe://{DOMAIN}/t/casemate/operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running auth: its process, its ports, where its certificates lie, and how long it took to start."""

    pid: int
    port: int
    https_port: int
    directory: Path
    start_s: float


@asynccontextmanager
async def running_auth(directory: Path) -> AsyncIterator[Served]:
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
            port, https_port = await _ports(process)
            start_s = time.perf_counter() - began
            reading = asyncio.create_task(_swallow(process))
            yield Served(pid=process.pid, port=port, https_port=https_port, directory=directory, start_s=start_s)
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


async def _ports(process: asyncio.subprocess.Process) -> tuple[int, int]:
    assert process.stderr is not None
    async for line in process.stderr:
        found = re.search(rb"ready: rpcs on port (\d+), OAuth on (\d+)", line)
        if found:
            return int(found[1]), int(found[2])
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
async def channel_to(served: Served, leaf: str) -> AsyncIterator[Any]:
    """A channel to auth that shows this leaf."""
    folder = served.directory / "leaves" / leaf
    credentials = grpc.ssl_channel_credentials(
        *((folder / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    options = (("grpc.ssl_target_name_override", f"auth.{DOMAIN}"), ("grpc.enable_http_proxy", 0))
    async with grpc.aio.secure_channel(f"127.0.0.1:{served.port}", credentials, options) as channel:
        yield channel
