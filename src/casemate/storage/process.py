"""Runs PostgreSQL's programs under the right user, and ends them by their own pid."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from casemate.errors import ConfigurationError

POLL_SECONDS: Final = 0.02
_FAST_SECONDS: Final = 60.0
_IMMEDIATE_SECONDS: Final = 15.0
_CHILD: Final = Path(__file__).with_name("_child.py")
# Nothing is inherited: neither PG… variables nor anybody's secrets.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class Account:
    """The user of the machine that a program runs as."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> Account:
        """Whoever we are."""
        return cls(os.geteuid(), os.getegid())

    @property
    def is_current(self) -> bool:
        """Whether nothing has to change."""
        return self.uid == os.geteuid()


def run(account: Account, *command: str | Path) -> str:
    """Runs a program to its end and returns its output.

    Raises:
        ConfigurationError: it could not be run, or failed; carries the end of what it wrote.
    """
    completed = subprocess.run(  # noqa: S603  # our own programs, arguments as a list
        _command_line(account, command, parent=0),
        env=_ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = completed.stdout.decode(errors="replace")
    if completed.returncode != 0:
        raise ConfigurationError(f"{Path(command[0]).name} failed: {_last_lines(output)}")
    return output


def spawn(account: Account, *command: str | Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a program that gets SIGINT when this thread, which must be the main one, ends.

    It has a session of its own, so that Ctrl-C reaches us first.
    """
    if threading.current_thread() is not threading.main_thread():
        # The kernel sends the signal when the *thread* that forked ends.
        raise RuntimeError("PostgreSQL must be started from the main thread")
    return subprocess.Popen(  # noqa: S603  # our own programs, arguments as a list
        _command_line(account, command, parent=os.getpid()),
        env=_ENVIRONMENT,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _command_line(account: Account, command: Sequence[str | Path], *, parent: int) -> list[str]:
    # -I: no user site, no PYTHON… variables, no current folder on the path. -S: nothing from site-packages.
    python = [sys.executable, "-I", "-S", str(_CHILD)]
    return [*python, str(parent), str(account.uid), str(account.gid), *(str(part) for part in command)]


def is_postgres_on(pid: int, data: Path) -> bool:
    """Whether that pid is now a PostgreSQL that serves `data`, and no other program that got the number later."""
    if platform.system() == "Linux":
        process = Path("/proc") / str(pid)
        try:
            # A deleted binary reads "postgres (deleted)": the wheel was upgraded under it.
            program = Path(str((process / "exe").readlink()).removesuffix(" (deleted)")).name
            return program == "postgres" and (process / "cwd").readlink() == data.resolve()
        except OSError:
            return False
    shown = subprocess.run(  # noqa: S603  # constant program; the pid is a number
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
    )
    return f"-D {data}" in shown.stdout.decode(errors="replace")


async def end_stranger(pid: int, data: Path) -> None:
    """Shuts down a PostgreSQL on `data` that is not our child, as a killed predecessor leaves it.

    Raises:
        ConfigurationError: it does not go.
    """
    for number, seconds in ((signal.SIGINT, _FAST_SECONDS), (signal.SIGQUIT, _IMMEDIATE_SECONDS)):
        if not is_postgres_on(pid, data):
            return
        os.kill(pid, number)
        for _ in range(int(seconds / POLL_SECONDS)):
            if not is_postgres_on(pid, data):
                return
            await asyncio.sleep(POLL_SECONDS)
    raise ConfigurationError(f"a PostgreSQL that an earlier run left behind (pid {pid}) does not stop")


async def end_child(child: subprocess.Popen[bytes]) -> int:
    """Shuts down our own PostgreSQL: fast, then immediate, then killed. Returns its exit status."""
    for number, seconds in ((signal.SIGINT, _FAST_SECONDS), (signal.SIGQUIT, _IMMEDIATE_SECONDS)):
        if child.poll() is None:
            child.send_signal(number)
        for _ in range(int(seconds / POLL_SECONDS)):
            if child.poll() is not None:
                return child.returncode
            await asyncio.sleep(POLL_SECONDS)
    child.kill()
    return child.wait()


def _last_lines(output: str, count: int = 5) -> str:
    return " | ".join(output.strip().splitlines()[-count:])
