"""What the make targets of deployment say when the tool behind them finds something, nothing, or cannot look."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

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


def programs(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these programs succeed, and write what they were told to `told`."""
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\necho {name} \"$@\" >>'{folder}/told'\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}


@pytest.mark.parametrize("version", ["dev", "1.2.3"])
def test_the_images_that_are_scanned_are_those_that_were_built(tmp_path: Path, version: str) -> None:
    """By name and tag: a scan of another would find nothing."""
    told = programs(tmp_path, "docker", "trivy") | ({} if version == "dev" else {"CASEMATE_VERSION": version})
    for script in ("images/build", "scan-images"):
        subprocess.run([CHECKOUT / "deploy" / script], env=told, capture_output=True, check=True)
    lines = (tmp_path / "told").read_text().splitlines()
    built = {line.split("--tag ")[1].split()[0] for line in lines if line.startswith("docker build")}
    scanned = {line.split()[-1] for line in lines if line.startswith("trivy") and "--exit-code 1" in line}
    listed = {line.split()[-1] for line in lines if line.startswith("trivy") and "cyclonedx" in line}
    assert built == scanned == listed
    assert f"casemate/auth:{version}" in built
    assert len(built) == 6


def test_what_a_workflow_runs_is_a_target_of_make() -> None:
    """Nothing exists only there."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for file in sorted((CHECKOUT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(file.read_text())
        assert workflow["permissions"] == {}, file.name
        for job in workflow["jobs"].values():
            named = {"$TARGET": job.get("strategy", {}).get("matrix", {}).get("target", [])}
            for command in [step["run"] for step in job["steps"] if "run" in step]:
                words = [word.strip('"') for word in command.split() if "=" not in word]
                assert words[0] == "make", command
                wanted = {target for word in words[1:] for target in named.get(word, [word])}
                assert wanted <= targets, wanted - targets
                seen += 1
            for step in job["steps"]:
                assert "uses" not in step or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
    assert seen >= 6


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
