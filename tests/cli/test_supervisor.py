from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from casemate.cli.supervisor import Child, ChildCommand

SLEEPER = "import time, pathlib, os, sys; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"


def command(tmp_path: Path, *arguments: str) -> ChildCommand:
    return ChildCommand(
        name="child", arguments=arguments, environment=dict(os.environ), directory=tmp_path, log=tmp_path / "child.log"
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_killed_child_is_started_again_and_told_of(tmp_path):
    told: list[tuple[str, int]] = []
    pid_file = tmp_path / "pid"
    child = Child(
        command(tmp_path, sys.executable, "-c", SLEEPER, str(pid_file)),
        on_restart=lambda name, status: told.append((name, status)),
    )
    await child.start()
    try:
        await until(pid_file.exists)
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.process.pid != first)
        assert told == [("child", -signal.SIGKILL)]
        assert alive(child.process.pid)
    finally:
        await child.stop()


async def test_stopped_child_is_gone_and_not_started_again(tmp_path):
    told: list[tuple[str, int]] = []
    pid_file = tmp_path / "pid"
    child = Child(
        command(tmp_path, sys.executable, "-c", SLEEPER, str(pid_file)),
        on_restart=lambda name, status: told.append((name, status)),
    )
    await child.start()
    await until(pid_file.exists)
    pid = child.process.pid
    await child.stop()
    assert not alive(pid)
    assert told == []
    assert child.restarts == 0


async def test_child_that_ignores_the_request_to_end_is_killed_after_the_grace(tmp_path):
    pid_file = tmp_path / "pid"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER
    child = Child(command(tmp_path, sys.executable, "-c", stubborn, str(pid_file)), on_restart=lambda *_: None)
    await child.start()
    await until(pid_file.exists)
    pid = child.process.pid
    await child.stop(grace_seconds=0.2)
    assert not alive(pid)
    assert child.process.returncode == -signal.SIGKILL


async def test_child_dies_with_a_killed_supervisor(tmp_path):
    pid_file = tmp_path / "pid"
    supervisor = (
        "import subprocess, sys, time\n"
        "bound = [sys.executable, '-m', 'casemate.cli.bound']\n"
        f"subprocess.Popen([*bound, sys.executable, '-c', {SLEEPER!r}, sys.argv[1]])\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor, str(pid_file)])
    try:
        await until(lambda: pid_file.exists() and pid_file.read_text())
        pid = int(pid_file.read_text())
        assert alive(pid)
        process.kill()
        process.wait()
        await until(lambda: not alive(pid))
    finally:
        process.kill()
        process.wait()
