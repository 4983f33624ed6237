"""What the make targets of deployment say when the tool behind them finds something, nothing, or cannot look."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("said", "status", "expected", "tells"),
    [
        ("No known vulnerabilities found", 0, 0, "requirements/tools.txt: No known"),
        ("Found 1 known vulnerability in 1 package", 1, 1, "requirements/tools.txt: Found 1"),
        ("cffi: Dependency not found on PyPI and could not be audited", 1, 2, "NOT AUDITED: pypi gives no advisories"),
        ("requests.exceptions.ConnectionError: Max retries exceeded", 1, 2, "NOT AUDITED: pypi gives no advisories"),
    ],
)
def test_an_audit_that_could_not_look_is_told_from_one_that_found_something(
    tmp_path: Path, said: str, status: int, expected: int, tells: str
) -> None:
    """The program in the place of pip-audit says what that one says."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    program.chmod(0o755)
    done = subprocess.run(
        [CHECKOUT / "deploy" / "audit-dependencies", tmp_path, "tools"], capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    assert tells in done.stdout + done.stderr


JUDGES = CHECKOUT / ".foreign" / "deploy" / "bin" / "python"
MONITOR = """
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: auth}
spec:
  selector: {matchLabels: {a: b}}
  endpoints: [{port: metrics, scheme: https}]
"""


@pytest.mark.parametrize(
    ("changed", "tells"),
    [
        (("", ""), "kubernetes: 1 hold"),
        (("endpoints", "endpoint"), "'endpoint' was unexpected"),
        (("https", "gopher"), "is not one of"),
        (("monitoring.coreos.com/v1", "monitoring.coreos.com/v9"), "no schema of monitoring.coreos.com/v9"),
    ],
)
def test_an_operators_kind_is_held_to_that_operators_schema(
    tmp_path: Path, changed: tuple[str, str], tells: str
) -> None:
    """An API server would take a name that it does not know, and drop it in silence."""
    if not JUDGES.exists():
        pytest.skip("SKIPPED: make check-deploy installs what judges schemas, and judges the manifests themselves")
    file = tmp_path / "rendered.yaml"
    file.write_text(MONITOR.replace(*changed, 1))
    command = [JUDGES, CHECKOUT / "deploy" / "schemas" / "check.py", "kubernetes", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tells in done.stdout, done.stdout + done.stderr
    assert done.returncode == (0 if changed == ("", "") else 1)
