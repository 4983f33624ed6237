"""Environments of their own for programs whose dependencies may clash with ours.

Each is made once, from its own lock in `requirements/`, under `.foreign/`. Where
no package index answers, the tests that need it are skipped, and the end of the
run says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_NO_INDEX = (
    "No matching distribution found",
    "NewConnectionError",
    "Could not fetch URL",
    "Read timed out",
    "ProxyError",
)
INSTALLING = 900
"""Seconds that a test may take which has to make an environment first."""

_missing: dict[str, str] = {}


def foreign_python(name: str) -> Path:
    """The interpreter of the environment that `requirements/<name>.txt` locks; skips where it cannot be made."""
    lock = _ROOT / "requirements" / f"{name}.txt"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    directory = _ROOT / ".foreign" / name
    directory.parent.mkdir(exist_ok=True)
    with (directory.parent / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stamp = directory / "lock.sha256"
        if not (stamp.is_file() and stamp.read_text() == wanted):
            _make(name, directory, lock)
            stamp.write_text(wanted)
    return directory / "bin" / "python"


def _make(name: str, directory: Path, lock: Path) -> None:
    if name in _missing:
        pytest.skip(_missing[name])
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [
        directory / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--retries=1",
    ]
    done = subprocess.run([*pip, "--require-hashes", "-r", lock], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    shutil.rmtree(directory, ignore_errors=True)
    if any(sign in done.stderr for sign in _NO_INDEX):
        _missing[name] = f"no package index gives what {lock.name} locks"
        pytest.skip(_missing[name])
    raise AssertionError(f"{lock.name} does not install:\n{done.stderr[-2000:]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was not tried; a skip alone is a letter among a thousand."""
    for name, reason in sorted(_missing.items()):
        terminalreporter.write_line(f"NOT TRIED: everything with {name}: {reason}", red=True, bold=True)
