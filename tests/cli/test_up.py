"""`casemate up` as a person runs it: a process, its output, Ctrl-C, and other terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.support.up import CASEMATE, PATIENCE, Commands, Up, state

__all__ = ["state"]  # a fixture


def processes_below(state: Path) -> list[str]:
    """Command lines of live processes that name the state directory."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if str(state).encode() in environment + command and directory.name != str(os.getpid()):
            found.append(command.replace(b"\0", b" ").decode())
    return found


def is_token_given(url: str, state: Path) -> bool:
    """Whether curl gets a token, as the caller of the story, where `up` says that tokens are given."""
    leaf = state / "pki" / "leaves" / "t" / "acme" / "caller"
    port = url.split("/")[2].partition(":")[2]
    name = f"auth.casemate.internal:{port}"
    shown = ["--cacert", leaf / "ca.pem", "--cert", leaf / "cert.pem", "--key", leaf / "key.pem"]
    asked = ["--data", "grant_type=client_credentials", "--data", "audience=inference", f"https://{name}/oauth2/token"]
    done = subprocess.run(
        ["curl", "--silent", "--resolve", f"{name}:127.0.0.1", *shown, *asked],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    return "access_token" in json.loads(done.stdout)


def test_first_start_publishes_and_the_printed_commands_work_as_they_stand(state):
    up = Up(state)
    try:
        up.wait_for("Ready in")
        up.wait_for("Ctrl-C stops everything")
        printed = [line.split("#")[0].strip() for line in up.said if " try " in line]
        assert len(printed) == 3
        assert is_token_given(next(line.split()[-1] for line in up.said if "OAuth 2 over HTTPS" in line), state)
        answers = {}
        for command in printed:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                check=False,
                capture_output=True,
                text=True,
                cwd="/",
                env={},
                timeout=PATIENCE,
            )
            assert done.returncode == 0, done.stderr
            answers[command.split()[-1]] = done.stdout
        assert re.search(r"prediction: (\d)   \(the image shows \1\)", answers["predict"])
        assert "refused: UNAUTHENTICATED / CERTIFICATE_MISMATCH" in answers["steal"]
        assert "select ordinal, sealed from sealed_rows" in answers["rows"]
        assert len(re.findall(r"^ +\d+  [0-9a-f]{80}…", answers["rows"], re.MULTILINE)) == 5
    finally:
        assert up.end() == 0
    assert up.said[-1] == "Stopped; data and keys are kept"
    assert processes_below(state) == []


def test_killed_supervisor_leaves_no_process_and_the_next_start_recovers(state):
    up = Up(state, "--no-seed", "--audience", "greeter=greetings.read")
    up.wait_for("Ready in")
    assert "greeter: greetings.read (remembered" in up.wait_for("tokens may also be for")
    up.end(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while processes_below(state) and time.monotonic() < deadline:
        time.sleep(0.1)  # the kernel tells the children; they drain
    assert processes_below(state) == []
    again = Up(state, "--no-seed")
    try:
        again.wait_for("Ready in")
        again.wait_for("From any other terminal")
        # What was said once: its clients are in the database, and would get no tokens.
        assert any("tokens may also be for greeter" in line for line in again.said)
        commands = Commands(state)
        commands("tenant", "create", "acme", "--as", "casemate/operator")
        guest = ("--tenant", "acme", "--spiffe-id", "spiffe://casemate.internal/t/acme/guest")
        wants = ("--scope", "greetings.read", "--as", "casemate/operator")
        commands("client", "create", "acme-guest", *guest, "--audience", "greeter", *wants)
        refused = commands("client", "create", "acme-other", *guest, "--audience", "stranger", *wants, expect=1)
        assert "audience" in refused
    finally:
        assert again.end() == 0


def test_second_up_on_one_state_says_so_in_one_line_and_leaves_the_first_alone(state):
    first = Up(state, "--no-seed")
    try:
        first.wait_for("Ready in")
        second = Up(state, "--no-seed")
        assert second.end(0) == 1
        assert f"already running on {state} (process {first.process.pid})" in "\n".join(second.said)
        announced = json.loads((state / "endpoints.json").read_text())
        assert announced["supervisor"] == first.process.pid
    finally:
        assert first.end() == 0


def test_commands_without_a_running_cluster_say_what_to_do(tmp_path):
    done = subprocess.run(
        [CASEMATE, "--state", tmp_path / "none", "try", "rows"],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "make run" in done.stderr
    assert "Traceback" not in done.stderr
