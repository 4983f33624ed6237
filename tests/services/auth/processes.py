"""The auth service as its own process, for tests that start and end it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import services.auth
from casemate.settings import DatabaseSettings
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE
from tests.services.auth.world import SOON

CHECKOUT = Path(services.auth.__file__).parents[2]


def build_environment(database: DatabaseSettings, identity: Path, state: Path) -> dict[str, str]:
    """What a process is told; its key-encryption key lies in `state` already."""
    password = state / "password"
    password.touch(mode=0o600)
    password.write_text(database.password.reveal())
    return {
        CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
        "PYTHONPATH": str(CHECKOUT),
        "CASEMATE_AUTH_LISTEN": "127.0.0.1:0",
        "CASEMATE_AUTH_METRICS_LISTEN": "127.0.0.1:0",
        "CASEMATE_AUTH_HTTP_LISTEN": "127.0.0.1:0",
        "CASEMATE_AUTH_IDENTITY_DIR": str(identity),
        "CASEMATE_AUTH_DATABASE_HOST": database.host,
        "CASEMATE_AUTH_DATABASE_PORT": str(database.port),
        "CASEMATE_AUTH_DATABASE_NAME": database.name,
        "CASEMATE_AUTH_DATABASE_USER": database.user,
        "CASEMATE_AUTH_DATABASE_PASSWORD_FILE": str(password),
        "CASEMATE_AUTH_KEK_FILE": str(state / "kek.json"),
        "CASEMATE_AUTH_AUDIT_FILE": str(state / "audit.jsonl"),
    }


@asynccontextmanager
async def start_process(
    environment: dict[str, str], *arguments: str, module: str = "services.auth"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A module run with this environment; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=CHECKOUT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit status and everything that was said."""
    async with asyncio.timeout(SOON):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def port_of(process: asyncio.subprocess.Process) -> int:
    """The port, from the line that says so."""
    assert process.stderr is not None
    async with asyncio.timeout(SOON):
        async for line in process.stderr:
            found = re.match(r"ready: rpcs on port (\d+)", json.loads(line)["message"])
            if found:
                return int(found[1])
    raise AssertionError("ended before it was ready")
