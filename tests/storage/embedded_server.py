"""What the tests of this folder share."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
SUPERVISOR = """
import asyncio, pathlib, sys
from casemate.storage.embedded import EmbeddedPostgres
async def main():
    server = EmbeddedPostgres(directory=pathlib.Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def program_of(server: EmbeddedPostgres) -> Path:
    return Path(f"/proc/{server.pid}/exe").readlink()


def start_supervisor(state: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Another process that runs the server in `state`, and that server's pid."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(state)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    with supervisor.stdout as said:
        return supervisor, int(said.readline())


async def remembered(server: EmbeddedPostgres) -> int:
    connection = await open_connection(server.superuser)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS starts (number serial)")
        await connection.execute("INSERT INTO starts DEFAULT VALUES")
        number: int = await connection.fetchval("SELECT count(*) FROM starts")
        return number
    finally:
        await connection.close()


async def answer(settings: DatabaseSettings) -> str:
    connection = await open_connection(settings)
    try:
        role: str = await connection.fetchval("SELECT current_user")
        return role
    finally:
        await connection.close()


# --- who may log in -------------------------------------------------------------------------
