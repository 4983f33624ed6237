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
from casemate.signing.statements import DatasetManifest
from tests.support.up import CASEMATE, PATIENCE, running

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sign-with-openssl.md"
KINDS = ("ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-3072")
OPERATOR = ("--as", "casemate/operator")
SUPPLIER = ("--as", "acme/sender")
LOG_TABLES = ("log_entries", "log_nodes", "log_head", "log_cosigned")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with running(tmp_path_factory.mktemp("openssl") / "state") as commands:
        yield commands


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
    """The page's commands in order: those for every key, and those for this kind, on a dataset of its own.

    What it says of the next version is no other for other keys: it is in the first kind's program alone.
    """
    page = PAGE.read_text() if kind == KINDS[0] else PAGE.read_text().partition("\n## The next version")[0]
    blocks = re.findall(r"^```sh ?([a-z0-9-]*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
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
def test_the_pages_commands_sign_push_and_prove_as_they_stand(supplier, tmp_path, kind):
    done = follow(program_of(kind), tmp_path, supplier.state)

    assert done.returncode == 0, done.stderr
    for version, rows in ((1, 3), (2, 4), (3, 3)) if kind == KINDS[0] else ((1, 3),):
        assert f"{dataset_of(kind)} version {version}: {rows} rows" in done.stdout
    receipt = next(line for line in done.stdout.splitlines() if ".tlog-proof: entry" in line)
    entry = json.loads(receipt[receipt.index("{") :])
    assert (entry["kind"], entry["body"]["dataset"]) == ("promotion", dataset_of(kind))
    trust = ("--trust", tmp_path / "signer.pem.pub", "--out", tmp_path / "back.csv")
    supplier("dataset", "pull", dataset_of(kind), "--version", "1", *trust, *SUPPLIER)
    signed = (tmp_path / f"{dataset_of(kind)}.csv").read_text()
    assert (tmp_path / "back.csv").read_text() == "height,name\n" + signed

    # Another byte, of the right length, is not what openssl signed.
    changed = tmp_path / "changed.csv"
    changed.write_text(signed.replace("Ada", "Eve"))
    envelope = tmp_path / f"{dataset_of(kind)}.envelope"
    assert "DIGEST_MISMATCH" in supplier("dataset", "push-signed", envelope, changed, *SUPPLIER, expect=1)


def test_what_was_signed_elsewhere_is_refused_when_one_byte_differs(supplier, tmp_path):
    """The page's program up to the sending, on the next version, with the data changed behind the signature."""
    kind = KINDS[0]
    header = tmp_path / f"{dataset_of(kind)}.csv"
    header.write_text("height,name\n171,Ada\n165,Grace\n")
    supplier("dataset", "manifest", header, "--out", tmp_path / "manifest.json", *SUPPLIER)
    program = program_of(kind)
    signing = next(line for line in program.splitlines() if line.startswith("envelope application"))
    done = follow(program.partition("printf '%s\\n' '171")[0] + signing, tmp_path, supplier.state)
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


def test_the_next_version_is_made_from_the_one_before_by_whoever_knows_no_service(tmp_path):
    """Without a state directory, a certificate or a token; the page's own commands push what comes of it."""

    def manifest(*arguments: str | Path, expect: int = 0) -> str:
        command = [CASEMATE, "--state", tmp_path / "none", "dataset", "manifest", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    data, first, second = tmp_path / "heights.csv", tmp_path / "first.json", tmp_path / "second.json"
    data.write_text("height\n171\n")
    assert "heights version 1" in manifest(data, "--first", "acme", "--out", first)
    data.write_text("height\n171\n165\n")
    assert "heights version 2: 2 rows" in manifest(data, "--after", first, "--out", second)
    before, after = (DatasetManifest.parse(path.read_bytes()) for path in (first, second))
    assert (before.audience, before.tenant, before.previous_root) == ("datasets.casemate.internal", "acme", None)
    assert (after.version, after.previous_root, after.upload_id != before.upload_id) == (2, before.root, True)

    assert "say who calls" in manifest(data, "--out", second, expect=1)
    assert "not both" in manifest(data, "--first", "acme", "--after", first, "--out", second, expect=2)
    assert "MANIFEST_INVALID" in manifest(data, "--after", data, "--out", second, expect=1)


def test_the_log_is_watched_proven_and_verified_offline(supplier, tmp_path):
    kept, receipt = tmp_path / "kept", tmp_path / "first.tlog-proof"
    supplier("log", "prove", "0", "--out", receipt, *OPERATOR)
    entries = [json.loads(line) for line in supplier("log", "watch", "--save", kept, *OPERATOR).splitlines()]
    assert [entry["index"] for entry in entries] == list(range(len(entries)))
    assert {"grant", "promotion", "release", "signer", "token-key"} <= {entry["kind"] for entry in entries}
    assert (kept / "keys").read_text().count("\n") == 2, "the log's key and the witness's"
    more = supplier("log", "watch", "--save", kept, *OPERATOR).splitlines()
    assert [json.loads(line)["index"] for line in more] == list(range(len(entries), len(entries) + len(more)))

    mine = [json.loads(line) for line in supplier("log", "watch", "--save", tmp_path / "mine", *SUPPLIER).splitlines()]
    assert {entry["body"]["tenant"] for entry in mine} == {"acme"}, "a tenant is shown its own, and proves the whole"
    assert SavedLog.load(tmp_path / "mine").size >= len(entries) > len(mine) > 0
    ours = next(entry["index"] for entry in entries if entry["kind"] == "token-key")
    assert "NOT_FOUND" in supplier("log", "prove", str(ours), *SUPPLIER, expect=1)

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
        assert (refused.returncode, refused.stdout) == (3 if path == forked else 1, "")
        assert "REFUSED" in refused.stderr
        assert why in refused.stderr


def test_an_old_copy_of_the_log_is_caught_at_once_and_nothing_is_added_to_it(supplier, tmp_path):
    """Last in this file: nothing agrees with the log afterwards."""
    key, kept, data = tmp_path / "other.pem", tmp_path / "kept", tmp_path / f"{dataset_of(KINDS[3])}.csv"
    supplier("signer", "create", key)
    proof = key.with_suffix(".proof")
    proof.write_text(supplier("signer", "prove", key, "--tenant", "acme", "--role", "supplier"))
    whose = ("--proof", proof, "--tenant", "acme", "--role", "supplier")
    supplier("signer", "register", f"{key}.pub", *whose, *OPERATOR)

    def push(name: str, **outcome: int) -> str:
        data.write_text(f"height,name\n171,{name}\n")
        return supplier("dataset", "push", data, "--key", key, *SUPPLIER, **outcome)

    asyncio.run(copied(supplier.state, back=False))
    push("Ada")
    supplier("log", "watch", "--save", kept, *SUPPLIER)

    asyncio.run(copied(supplier.state, back=True))
    assert "HISTORY DIFFERS" in supplier("log", "watch", "--save", kept, *SUPPLIER, expect=3)
    # The service signs nothing more on a log that its witness saw longer.
    assert "DATA_LOSS" in push("Eve", expect=1)
    assert "HISTORY DIFFERS" in supplier("log", "watch", "--save", kept, *SUPPLIER, expect=3)


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
