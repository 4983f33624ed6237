"""Keeps child processes running, and leaves none behind.

A child dies with its supervisor, even when that one is killed (see
`casemate.cli.bound`). A child that dies by itself is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 20.0
"""A child that lived this long starts again without a pause."""


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """What to run, where, with what, and where its output goes."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    log: Path


@dataclass(slots=True)
class Child:
    """One process that is started again when it dies.

    `on_restart` is told the child's name and how it ended; starting is not told.
    """

    command: ChildCommand
    on_restart: Callable[[str, int], None]
    restarts: int = 0
    process: asyncio.subprocess.Process | None = None
    _stopping: bool = False
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Starts the process; from the main thread, to whose life the child is bound."""
        self.process = await self._spawn()
        self._task = asyncio.create_task(self._keep_running(), name=f"keep {self.command.name}")

    async def stop(self, *, grace_seconds: float = 10.0) -> None:
        """Asks the process to end, kills it after the grace, and waits until it is gone."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping and self.process is not None:
            started = loop.time()
            status = await self.process.wait()
            pause = FIRST_PAUSE_SECONDS if loop.time() - started > STEADY_SECONDS else pause
            self.on_restart(self.command.name, status)
            self.restarts += 1
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            self.process = await self._spawn()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self.command.log.parent.mkdir(parents=True, exist_ok=True)
        with self.command.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *bound(self.command.arguments),
                cwd=self.command.directory,
                env=dict(self.command.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl-C in the terminal reaches the supervisor, which stops
                # the children in order.
                start_new_session=True,
            )


def bound(arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` bound to the life of the calling thread."""
    return [sys.executable, "-m", "casemate.cli.bound", *arguments]
