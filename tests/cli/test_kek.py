"""Keys rotated and versions shredded as an operator and a supplier type it, against one running cluster."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest

from casemate.sealing.local import LocalKeyRing
from tests.support.up import CASEMATE, PATIENCE, Up

OPERATOR = ("--as", "casemate/operator")
SUPPLIER = ("--as", "acme/supplier")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    root = tmp_path_factory.mktemp("kek") / "state"
    up = Up(root)
    try:
        up.wait_for("Ready in")
        yield root
    finally:
        up.end()
        up.erase()


@pytest.fixture
def run(state, tmp_path):
    def run(*arguments: str | Path, expect: int = 0, typed: str = "") -> str:
        done = subprocess.run(
            [CASEMATE, "--state", state, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=tmp_path,
            input=typed,
        )
        assert done.returncode == expect, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if expect == 0 else done.stderr

    return run


@pytest.mark.parametrize("service", ["auth", "inference", "datasets"])
def test_a_key_is_rotated_and_all_that_it_wraps_comes_under_the_new_version(run, service):
    before = json.loads(run("kek", "status", service, "--json", *OPERATOR))
    done = json.loads(run("kek", "rotate", service, "--json", *OPERATOR))
    after = json.loads(run("kek", "status", service, "--json", *OPERATOR))

    assert before["wrapped"], "the seeded cluster holds keys of every service"
    assert done["current_version"] == after["current_version"] == before["current_version"] + 1
    assert (done["rewrapped"], done["failed"], after["due"]) == (sum(each["keys"] for each in before["wrapped"]), 0, 0)
    assert f"version {after['current_version']}, ENABLED, for development" in run("kek", "status", *OPERATOR)


def test_the_cluster_predicts_and_pulls_after_the_rotations(run, state):
    assert run("try", "predict")
    public = state / "signers" / "supplier.pem.pub"
    assert "proven" in run("dataset", "pull", "digits", "--trust", public, "--out", "digits.csv", *SUPPLIER)


def test_another_ring_than_the_services_own_is_refused_and_not_touched(run, tmp_path):
    other = tmp_path / "other.json"
    LocalKeyRing.create(other)
    assert "nothing was changed" in run("kek", "rotate", "datasets", "--ring", other, *OPERATOR, expect=1)
    assert LocalKeyRing.load(other).describe().current_version == 1
    assert "0 could not be opened" in run("kek", "rotate", "datasets", "--rewrap-only", *OPERATOR)


def test_a_supplier_rotates_nothing(run):
    assert "PERMISSION_DENIED" in run("kek", "status", "datasets", *SUPPLIER, expect=1)


def test_a_shredded_version_is_gone_and_its_receipt_verifies_offline_and_a_changed_one_does_not(run, state, tmp_path):
    grant = ("--tenant", "acme", "--caller", "t/acme/supplier", "--resource", "dataset/digits")
    assert "NOT_FOUND" in run("dataset", "shred", "digits", "--version", "1", "--yes", *SUPPLIER, expect=1)
    run("grant", "create", "--verb", "shred", *grant, *OPERATOR)
    run("dataset", "shred", "digits", "--version", "1", *SUPPLIER, expect=1, typed="n\n")

    public = state / "signers" / "supplier.pem.pub"
    pull = ("dataset", "pull", "digits", "--trust", public, "--out", "digits.csv", *SUPPLIER)
    run(*pull)
    said = json.loads(run("dataset", "shred", "digits", "--version", "1", "--yes", "--json", *SUPPLIER))
    receipt = tmp_path / said["receipt"]
    assert "NOT_FOUND" in run(*pull, expect=1)

    (tmp_path / "log.key").write_text(said["log_key"] + "\n")
    watch = ("log", "watch", "--save", "kept", "--as", "acme/watcher")
    run("pki", "issue", "acme/watcher")
    about = ("--tenant", "acme", "--spiffe-id", "spiffe://casemate.internal/t/acme/watcher", "--audience", "datasets")
    run("client", "create", "acme-watcher", *about, "--scope", "log.read", *OPERATOR)
    run(*watch)
    for key in (said["log_key"], "log.key", "kept/keys"):
        verified = run("dataset", "verify-receipt", receipt, "--log-key", key)
        assert "acme/digits version 1 was shredded" in verified
        assert "no backup opens it from" in verified
    envelope = json.loads(receipt.read_text())
    statement = base64.b64decode(envelope["payload"]).replace(b"acme", b"evil", 1)
    assert statement != base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(statement).decode()
    (tmp_path / "changed.json").write_text(json.dumps(envelope))
    run("dataset", "verify-receipt", "changed.json", "--log-key", "log.key", expect=1)
    assert json.loads(run("dataset", "describe", "digits", *SUPPLIER))["shredded_at"]
