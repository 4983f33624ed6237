"""`casemate up` as a process, for tests that watch it from outside."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.cli.state import StateDirectory
from casemate.storage.embedded import EmbeddedPostgres

CASEMATE = Path(sys.executable).parent / "casemate"
PATIENCE = 90.0


class Up:
    """A running `casemate up`, and the lines that it printed."""

    def __init__(self, state: Path, *arguments: str) -> None:
        self._state = state
        self.process = subprocess.Popen(
            [CASEMATE, "--state", state, "up", "--free-ports", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, wanted: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while (line := self._lines.get(timeout=max(deadline - time.monotonic(), 0.1))) is not None:
            self.said.append(line)
            if wanted in line:
                return line
        raise AssertionError(f"ended without saying {wanted!r}: {self.said}")

    def end(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join()
        self.process.stdout.close()
        while (line := self._lines.get()) is not None:
            self.said.append(line)
        return status

    def erase(self) -> None:
        """Deletes the database of the state, wherever it lies."""
        asyncio.run(_erase(self._state))


class Commands:
    """`casemate` commands on one state."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *arguments: str | Path, expect: int = 0) -> str:
        """What a command printed; of one that is to fail, what it said of that."""
        done = subprocess.run(
            [CASEMATE, "--state", self.state, *arguments], check=False, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == expect, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if expect == 0 else done.stderr


@contextmanager
def running(state: Path, *arguments: str) -> Iterator[Commands]:
    """Commands on a state that is up as long as this lasts, and erased then."""
    up = Up(state, *arguments)
    try:
        up.wait_for("Ready in")
        yield Commands(state)
    finally:
        up.end()
        up.erase()


async def _erase(state: Path) -> None:
    await EmbeddedPostgres(directory=StateDirectory(state).postgres).erase()


@pytest.fixture
def state(tmp_path):
    root = tmp_path / "state"
    yield root
    asyncio.run(_erase(root))
