"""The example's README, typed as it stands against a running cluster, but for where the cluster lies."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from casemate.cli.state import StateDirectory
from tests.support.up import PATIENCE, Up, state

__all__ = ["state"]  # a fixture

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "protect_your_own_service" / "README.md").read_text()
BIN = Path(sys.executable).parent
TYPED = [line[2:] for line in re.findall(r"^\$ .*$", README, re.MULTILINE)]


def command(beginning: str) -> str:
    """The one line of the README that begins so."""
    (found,) = (line for line in TYPED if line.startswith(beginning))
    return found


class Terminal:
    """Types lines of the README, with the places of this cluster in them."""

    def __init__(self, state: Path) -> None:
        self.places = {".casemate/": f"{state}/", ".venv/bin/": f"{BIN}/"}
        ports = json.loads(StateDirectory(state).endpoints.read_text())["grpc"]
        self.places |= {"127.0.0.1:7401": f"127.0.0.1:{ports['auth']}", "127.0.0.1:7501": "127.0.0.1:0"}
        self.places |= {"casemate ": f"casemate --state {state} "}

    def words(self, line: str) -> list[str]:
        for there, here in self.places.items():
            line = re.sub(rf"(?<![\w.-]){re.escape(there)}" if there == "casemate " else re.escape(there), here, line)
        return shlex.split(line)

    def type(self, line: str, *, expect: int = 0) -> str:
        done = subprocess.run(self.words(line), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == expect, (line, done.stdout, done.stderr)
        return done.stdout + done.stderr

    @contextmanager
    def serving(self, line: str):
        """The service, until its standard input ends; its port takes the place of the README's."""
        process = subprocess.Popen(self.words(line), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.places["127.0.0.1:7501"] = f"127.0.0.1:{int(process.stdout.readline())}"
            yield
        finally:
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
            process.stdout.close()
            self.places["127.0.0.1:7501"] = "127.0.0.1:0"


def greeted(terminal: Terminal) -> str:
    """What the client hears; asked again while the service waits for its first news."""
    for _ in range(100):
        done = subprocess.run(
            terminal.words(command(f".venv/bin/python -m {MODULE}.greet")),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if "UNAVAILABLE" not in done.stderr:
            return done.stdout + done.stderr
        threading.Event().wait(0.05)
    pytest.fail("the service stays unavailable")


MODULE = "examples.protect_your_own_service"


@pytest.mark.long
def test_every_command_of_the_readme_works_as_it_stands(state):
    before = status_of_the_checkout()
    (audience,) = re.findall(r"make run AUDIENCE=(\S+)", README)
    up = Up(state, "--no-seed", "--audience", audience)
    try:
        up.wait_for("Ready in")
        terminal = Terminal(state)
        terminal.type(".venv/bin/casemate tenant create acme --as casemate/operator")  # as the seed of `make run` has
        assert terminal.type(command(".venv/bin/casemate pki issue svc/")).strip().endswith("/svc/greeter")
        serve = command(f".venv/bin/python -m {MODULE}.serve_sync")
        with terminal.serving(serve):
            assert terminal.type(command(".venv/bin/casemate pki issue acme/guest"))
            assert "no token: " in greeted(terminal)  # nobody has registered it yet
            terminal.type(command(".venv/bin/casemate client create"))
            assert greeted(terminal) == "Hello, Ada\n"
            assert terminal.type(command(".venv/bin/casemate token greeter")).count(".") == 2
        with terminal.serving(serve.replace("serve_sync", "serve_aio")):
            assert greeted(terminal) == "Hello, Ada\n"
        assert "one chain" in terminal.type(command(".venv/bin/casemate audit verify"))
        assert status_of_the_checkout() == before
    finally:
        assert up.end() == 0


def status_of_the_checkout() -> list[str]:
    """What lies beside the example and at the root, as git sees it."""
    places = (":/*.jsonl*", ":/examples")
    told = subprocess.run(["git", "status", "--short", *places], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


def test_the_readme_keeps_the_audit_where_git_does_not_look():
    """The twin of the above for every run: what it names lies in the state."""
    assert re.findall(r"\S+\.jsonl", README)
    assert all(name.startswith(".casemate/") for name in re.findall(r"\S+\.jsonl", README))
    assert ".casemate/" in (ROOT / ".gitignore").read_text().splitlines()


def test_make_run_hands_the_audience_on():
    for more, told in ((["AUDIENCE=greeter=greetings.read"], "--audience 'greeter=greetings.read'"), ([], "up \n")):
        said = subprocess.run(
            ["make", "--dry-run", "run", *more], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert told in f"{said}\n"
