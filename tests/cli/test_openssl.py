"""A supplier with nothing but openssl, and whoever keeps a checkpoint, by the commands that the documents print."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from casemate.cli.database import connect_as_superuser
from casemate.cli.state import StateDirectory
from casemate.client.saved_log import LogKeys, SavedLog
from casemate.signing.checkpoint import sign_checkpoint, verify_checkpoint
from casemate.signing.keys import SigningKey
from casemate.signing.merkle import leaf_hash, root
from tests.support.up import CASEMATE, PATIENCE, Up

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sign-with-openssl.md"
KINDS = ("ed25519", "ecdsa-p256", "rsa-pss-3072")
OPERATOR = ("--as", "casemate/operator")
SUPPLIER = ("--as", "acme/sender")
LOG_TABLES = ("log_entries", "log_nodes", "log_head", "log_cosigned")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    root = tmp_path_factory.mktemp("openssl") / "state"
    up = Up(root)
    try:
        up.wait_for("Ready in")
        yield root
    finally:
        up.end()
        up.erase()


@pytest.fixture(scope="module")
def run(state):
    def run(*arguments: str | Path, expect: int = 0) -> str:
        done = subprocess.run(
            [CASEMATE, "--state", state, *arguments], check=False, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == expect, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if expect == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def supplier(run):
    """A client that may push and read three datasets, and read the log."""
    run("pki", "issue", "acme/sender")
    scopes = [word for scope in ("datasets.write", "datasets.read", "log.read") for word in ("--scope", scope)]
    who = ("--tenant", "acme", "--spiffe-id", "spiffe://casemate.internal/t/acme/sender")
    run("client", "create", "acme-sender", *who, "--audience", "datasets", *scopes, *OPERATOR)
    for kind in KINDS:
        for verb in ("push", "read"):
            what = ("--verb", verb, "--resource", f"dataset/{dataset_of(kind)}")
            run("grant", "create", "--tenant", "acme", "--caller", "t/acme/sender", *what, *OPERATOR)
    return run


def dataset_of(kind: str) -> str:
    return f"people-{kind}"


def program_of(kind: str) -> str:
    """The page's commands in order: those for every key, and those for this kind, on a dataset of its own."""
    blocks = re.findall(r"^```sh ?([a-z0-9-]*)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert {name for name, _ in blocks} == {"", *KINDS}
    text = "".join(block for name, block in blocks if name in ("", kind))
    return (
        "set -eu\n" + 'casemate() { "$CASEMATE" --state "$STATE" "$@"; }\n' + text.replace("people", dataset_of(kind))
    )


def follow(program: str, where: Path, state: Path) -> subprocess.CompletedProcess[str]:
    environment = {"CASEMATE": str(CASEMATE), "STATE": str(state), "PATH": os.environ["PATH"], "HOME": str(where)}
    return subprocess.run(
        ["sh", "-c", program],
        cwd=where, env=environment, check=False, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_commands_sign_push_and_prove_as_they_stand(supplier, state, tmp_path, kind):
    done = follow(program_of(kind), tmp_path, state)

    assert done.returncode == 0, done.stderr
    assert f"{dataset_of(kind)} version 1: 3 rows" in done.stdout
    *_, receipt = done.stdout.splitlines()
    entry = json.loads(receipt[receipt.index("{") :])
    assert (entry["kind"], entry["body"]["dataset"]) == ("promotion", dataset_of(kind))
    supplier(
        *("dataset", "pull", dataset_of(kind), "--trust", tmp_path / "signer.pem.pub", "--out", tmp_path / "back.csv"),
        *SUPPLIER,
    )
    signed = (tmp_path / f"{dataset_of(kind)}.csv").read_text()
    assert (tmp_path / "back.csv").read_text() == "height,name\n" + signed

    # Another byte, of the right length, is not what openssl signed.
    changed = tmp_path / "changed.csv"
    changed.write_text(signed.replace("Ada", "Eve"))
    envelope = tmp_path / f"{dataset_of(kind)}.envelope"
    assert "DIGEST_MISMATCH" in supplier("dataset", "push-signed", envelope, changed, *SUPPLIER, expect=1)


def test_what_was_signed_elsewhere_is_refused_when_one_byte_differs(supplier, state, tmp_path):
    """The page's program up to the sending, on the next version, with the data changed behind the signature."""
    kind = KINDS[0]
    header = tmp_path / f"{dataset_of(kind)}.csv"
    header.write_text("height,name\n171,Ada\n165,Grace\n")
    supplier("dataset", "manifest", header, "--out", tmp_path / "manifest.json", *SUPPLIER)
    before, _, after = program_of(kind).partition("printf '%s\\n' '171")
    done = follow(before + after.partition("\nEND\n")[2].partition("said=")[0], tmp_path, state)
    assert done.returncode == 0, done.stderr
    envelope = tmp_path / f"{dataset_of(kind)}.envelope"

    genuine = header.read_text()
    for wrong, reason in (
        (genuine.replace("Ada", "Eve"), "DIGEST_MISMATCH"),
        (genuine + "1,x\n", "DIGEST_MISMATCH"),
        (genuine[:-2], "DIGEST_MISMATCH"),
    ):
        header.write_text(wrong)
        assert reason in supplier("dataset", "push-signed", envelope, header, "--header", *SUPPLIER, expect=1)
    header.write_text(genuine)
    assert "2 rows" in supplier("dataset", "push-signed", envelope, header, "--header", *SUPPLIER)


def test_the_log_is_watched_proven_and_verified_offline(supplier, tmp_path):
    kept, receipt = tmp_path / "kept", tmp_path / "first.tlog-proof"
    supplier("log", "prove", "0", "--out", receipt, *SUPPLIER)
    entries = [json.loads(line) for line in supplier("log", "watch", "--save", kept, *SUPPLIER).splitlines()]
    assert [entry["index"] for entry in entries] == list(range(len(entries)))
    assert {"grant", "promotion", "release", "signer", "token-key"} <= {entry["kind"] for entry in entries}
    assert (kept / "keys").read_text().count("\n") == 2, "the log's key and the witness's"
    more = supplier("log", "watch", "--save", kept, *SUPPLIER).splitlines()
    assert [json.loads(line)["index"] for line in more] == list(range(len(entries), len(entries) + len(more)))

    log_key, witness_key = (kept / "keys").read_text().split()
    for trusted in (("--saved", kept), ("--log-key", log_key), ("--log-key", log_key, "--witness-key", witness_key)):
        assert "entry 0 of" in supplier("log", "verify", receipt, kept / "checkpoint", *trusted)

    receipt.write_text(receipt.read_text().replace("index 0", "index 1"))
    assert "REFUSED" in supplier("log", "verify", receipt, "--saved", kept, expect=1)


def test_a_fork_is_refused_offline_by_whoever_keeps_the_leaves(tmp_path):
    """Both checkpoints are signed by the log's key; only what was kept tells them apart."""
    key, leaves = SigningKey.generate(), [leaf_hash(bytes([number])) for number in range(5)]
    origin, kept = "datasets.casemate.internal/log", tmp_path / "kept"

    def note(size: int, hashes: list[bytes]) -> str:
        return sign_checkpoint(origin, size, root(hashes[:size]), key)

    checkpoint = verify_checkpoint(note(5, leaves), origin, key.public)
    SavedLog(keys=LogKeys(origin, key.public), checkpoint=checkpoint, leaves=tuple(leaves)).save(kept)
    genuine, forked, later = (tmp_path / name for name in ("genuine", "forked", "later"))
    genuine.write_text(note(3, leaves))
    forked.write_text(note(3, leaves[::-1]))
    later.write_text(note(5, leaves).replace("\n5\n", "\n6\n"))

    def verify(path: Path) -> subprocess.CompletedProcess[str]:
        command = [CASEMATE, "log", "verify", path, "--saved", kept]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)

    assert "checkpoint of 3 entries" in verify(genuine).stdout
    for path, why in ((forked, "another tree of 3 entries"), (later, "does not verify")):
        refused = verify(path)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "REFUSED" in refused.stderr
        assert why in refused.stderr


def test_an_old_copy_of_the_log_is_caught_at_once_and_nothing_is_added_to_it(supplier, state, tmp_path):
    """Last in this file: nothing agrees with the log afterwards."""
    key, kept, data = tmp_path / "other.pem", tmp_path / "kept", tmp_path / f"{dataset_of(KINDS[2])}.csv"
    supplier("signer", "create", key)
    proof = key.with_suffix(".proof")
    proof.write_text(supplier("signer", "prove", key, "--tenant", "acme", "--role", "supplier"))
    whose = ("--proof", proof, "--tenant", "acme", "--role", "supplier")
    supplier("signer", "register", f"{key}.pub", *whose, *OPERATOR)

    def push(name: str, **outcome: int) -> str:
        data.write_text(f"height,name\n171,{name}\n")
        return supplier("dataset", "push", data, "--key", key, *SUPPLIER, **outcome)

    asyncio.run(copied(state, back=False))
    push("Ada")
    supplier("log", "watch", "--save", kept, *SUPPLIER)

    asyncio.run(copied(state, back=True))
    assert "HISTORY DIFFERS" in supplier("log", "watch", "--save", kept, *SUPPLIER, expect=1)
    # The service signs nothing more on a log that its witness saw longer.
    assert "DATA_LOSS" in push("Eve", expect=1)
    assert "HISTORY DIFFERS" in supplier("log", "watch", "--save", kept, *SUPPLIER, expect=1)


async def copied(state: Path, *, back: bool) -> None:
    """Keeps a copy of the log's tables, or puts it back: what an old backup does."""
    async with connect_as_superuser(StateDirectory(state), "casemate_datasets") as sql:
        await sql.execute("SET session_replication_role = replica")  # no trigger counts
        for table in LOG_TABLES:
            if back:
                await sql.execute(f"TRUNCATE {table}")
                await sql.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")  # noqa: S608  # names above
            else:
                await sql.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608  # as above
