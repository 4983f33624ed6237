"""The commands as a supplier, a trainer and an operator type them, against one running cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from casemate.cli.state import PORTS, StateDirectory
from casemate.client.datasets import Cursor
from tests.support.up import CASEMATE, PATIENCE, Up

DATA = "height,weight,name\n" + "".join(f"{150 + n},{50.5 + n},person {n}\n" for n in range(500))
OPERATOR = ("--as", "casemate/operator")
SUPPLIER = ("--as", "acme/weigher")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "push-a-file.md"
TRAINING = PAGE.with_name("read-for-training.md")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands") / "state"
    up = Up(root)
    try:
        up.wait_for("Ready in")
        yield root
    finally:
        up.end()
        up.erase()


@pytest.fixture
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
def key(tmp_path_factory):
    return tmp_path_factory.mktemp("key") / "weigher.pem"


@pytest.fixture
def supplier(run, state, key):
    """A supplier who registered a key and may push and read `people`, by the commands of the page."""
    if key.exists():
        return key
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    program = 'set -eu\ncasemate() { "$CASEMATE" --state "$STATE" "$@"; }\n' + "".join(blocks)
    environment = {"CASEMATE": str(CASEMATE), "STATE": str(state), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sh", "-c", program], cwd=key.parent, env=environment, check=False, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return key


def test_pushed_file_comes_back_byte_for_byte(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(DATA)
    pushed = json.loads(run("dataset", "push", file, "--key", supplier, "--json", *SUPPLIER))
    assert pushed["rows"] == 500
    described = json.loads(run("dataset", "describe", "people", "--version", str(pushed["version"]), *SUPPLIER))
    assert described["root"] == pushed["root"]
    listed = [json.loads(line) for line in run("dataset", "list", "--json", *SUPPLIER).splitlines()]
    assert {(one["dataset"], one["version"], one["root"]) for one in listed} >= {
        ("people", pushed["version"], pushed["root"])
    }
    assert any(line.startswith("people  ") for line in run("dataset", "list", *SUPPLIER).splitlines())
    back = tmp_path / "back.csv"
    run("dataset", "pull", "people", "--trust", f"{supplier}.pub", "--out", back, *SUPPLIER)
    assert back.read_text() == DATA


def _json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _arrow(path: Path) -> list[dict]:
    return pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()


@pytest.mark.parametrize("ending", ["jsonl", "arrow", "parquet"])
def test_each_kind_of_file_comes_back_with_its_records(run, supplier, tmp_path, ending):
    records = [{"height": 150 + n, "weight": 50.5 + n, "name": None if n % 7 else f"person {n}"} for n in range(500)]
    file, table = tmp_path / f"people.{ending}", pa.Table.from_pylist(records)
    if ending == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif ending == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    said = json.loads(run("dataset", "push", file, "--key", supplier, "--json", *SUPPLIER))
    described = json.loads(run("dataset", "describe", "people", "--version", str(said["version"]), *SUPPLIER))
    assert (said["records"], described["records"], described["rows"]) == (500, 500, said["rows"])
    out = tmp_path / "back"
    run("dataset", "pull", "people", "--trust", f"{supplier}.pub", "--out", out, *SUPPLIER)
    assert (_json_lines if ending == "jsonl" else _arrow)(out) == records

    if ending != "jsonl":  # cut short, as by a disk that was full: it is no file of its kind any more
        file.write_bytes(file.read_bytes()[:-40])
        cut = run("dataset", "push", file, "--key", supplier, *SUPPLIER, expect=1)
        assert (cut.count("\n"), "RECORD_INVALID" in cut) == (1, True)


def test_the_page_for_trainers_reads_a_version_as_it_stands(run, state, supplier, tmp_path):
    (tmp_path / "people.csv").write_text(DATA)
    pushed = json.loads(run("dataset", "push", tmp_path / "people.csv", "--key", supplier, "--json", *SUPPLIER))
    code = re.search(r"^```python\n(.*?)^```$", TRAINING.read_text(), flags=re.DOTALL | re.MULTILINE)[1]
    ports = json.loads((state / "endpoints.json").read_text())["grpc"]
    for written, here in (
        ('"digits", 7', f'"people", {pushed["version"]}'),
        ('Path("trainer")', f'Path("{StateDirectory(state).client_leaf("acme", "weigher")}")'),
        ('"supplier.pub"', f'"{supplier}.pub"'),
        *((f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}") for name, port in PORTS.items()),
    ):
        assert code.count(written) == 1, written
        code = code.replace(written, here)
    batches, kept = [], []
    said = {"train": batches.append, "keep": kept.append}
    exec(compile(code, str(TRAINING), "exec"), said)  # noqa: S102  # the page's own words
    try:
        assert said["pulled"].receipt.receipt.rows == sum(batch.num_rows for batch in batches)
        rest = said["Datasets"](said["session"]).resume(
            Cursor.parse(kept[-1]), tenant="acme", trusted=[said["supplier"]]
        )
        assert list(rest) == []
    finally:
        said["session"].close()


def test_second_push_is_the_next_version_and_names_the_root_before_it(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(DATA)
    first = json.loads(run("dataset", "push", file, "--key", supplier, "--json", *SUPPLIER))
    second = json.loads(run("dataset", "push", file, "--key", supplier, "--json", *SUPPLIER))
    assert second["version"] == first["version"] + 1
    other = tmp_path / "other.pem"
    run("signer", "create", other)
    push = ("dataset", "push", file, "--key", supplier, "--json", *SUPPLIER)
    assert "SIGNER_UNTRUSTED" in run(*push, "--trust", f"{other}.pub", expect=1)
    third = json.loads(run(*push, "--trust", f"{other}.pub", "--trust", f"{supplier}.pub"))
    assert third["version"] == second["version"] + 1


def test_pull_that_trusts_another_key_writes_nothing(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(DATA)
    run("dataset", "push", file, "--key", supplier, *SUPPLIER)
    other = tmp_path / "other.pem"
    run("signer", "create", other)
    out = tmp_path / "out.csv"
    said = run("dataset", "pull", "people", "--trust", f"{other}.pub", "--out", out, *SUPPLIER, expect=1)
    assert "SIGNER_UNTRUSTED" in said
    assert not out.exists()
    assert not list(tmp_path.glob("*.part"))
    both = ("--version", "1", "--label", "latest")
    run("dataset", "pull", "people", "--trust", f"{supplier}.pub", "--out", out, *both, *SUPPLIER, expect=2)
    assert not out.exists()
    run("dataset", "pull", "people", "--trust", f"{supplier}.pub", "--out", out, *both[2:], *SUPPLIER)
    assert out.exists()


def test_a_grant_ends_when_it_was_made_to(run):
    about = ("--tenant", "acme", "--caller", "t/acme/late", "--verb", "push", "--resource", "dataset/late", *OPERATOR)
    run("grant", "create", *about, "--expires", "2099-01-01T00:00:00")
    run("grant", "create", *about[:6], "--resource", "dataset/ever", *OPERATOR)
    listed = [json.loads(line) for line in run("grant", "list", "--tenant", "acme", "--json", *OPERATOR).splitlines()]
    ends = {grant["resource"]: grant["expires"] for grant in listed if grant["caller"] == "t/acme/late"}
    assert ends == {"dataset/late": "2099-01-01T00:00:00+00:00", "dataset/ever": None}
    columns = [line.split()[-2:] for line in run("grant", "list", "--tenant", "acme", *OPERATOR).splitlines()]
    assert ["dataset/late", "2099-01-01T00:00:00+00:00"] in columns
    assert ["dataset/ever", "-"] in columns


def test_push_by_an_unregistered_key_is_refused(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(DATA)
    stranger = tmp_path / "stranger.pem"
    run("signer", "create", stranger)
    assert "SIGNER_UNTRUSTED" in run("dataset", "push", file, "--key", stranger, *SUPPLIER, expect=1)
    assert "version" in run("dataset", "push", file, "--key", supplier, *SUPPLIER)


def test_record_that_does_not_fit_the_schema_is_named_by_number(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(DATA + "1,2\n")
    said = run("dataset", "push", file, "--key", supplier, *SUPPLIER, expect=1)
    assert "RECORD_INVALID" in said
    assert "500" in said


def test_dataset_that_is_not_granted_looks_like_one_that_is_not_there(run, supplier):
    not_granted = run("dataset", "describe", "digits", *SUPPLIER, expect=1)
    not_there = run("dataset", "describe", "nothing", *SUPPLIER, expect=1)
    assert not_granted.split("(request")[0] == not_there.split("(request")[0]
    assert "RESOURCE_NOT_FOUND" in not_there


def test_why_a_call_was_refused_is_told_with_the_command_that_mends_it(run, state, supplier, tmp_path):
    file = tmp_path / "heights.csv"
    file.write_text(DATA)
    push = ("dataset", "push", file, "--key", supplier, *SUPPLIER)
    said = run(*push, expect=1)
    assert "RESOURCE_NOT_FOUND" in said
    told = run("audit", "why", re.search(r"\(request (\w+)\)", said)[1])
    assert "GRANT_MISSING" in told
    _, *mends = shlex.split(told.rpartition("to mend it:")[2])
    assert mends[:2] == ["grant", "create"]
    run(*mends, *OPERATOR)
    assert "version" in run(*push)
    for service in ("auth", "datasets", "inference"):
        assert "one chain" in run("audit", "verify", state / "audit" / f"{service}.jsonl")


def test_administration_needs_an_operator(run, supplier):
    assert "PERMISSION_DENIED" in run("tenant", "create", "globex", *SUPPLIER, expect=1)
    run("tenant", "create", "globex", *OPERATOR)
    assert "ALREADY_EXISTS" in run("tenant", "create", "globex", *OPERATOR, expect=1)


def test_grants_are_listed_and_removed(run, supplier):
    made = run(
        *("grant", "create", "--tenant", "acme", "--caller", "t/acme/weigher", "--verb", "infer"),
        *("--resource", "model/*", *OPERATOR),
    ).strip()
    listed = [json.loads(line) for line in run("grant", "list", "--tenant", "acme", "--json", *OPERATOR).splitlines()]
    assert made in {grant["id"] for grant in listed}
    run("grant", "delete", made, *OPERATOR)
    assert made not in run("grant", "list", "--tenant", "acme", *OPERATOR)


def test_leaves_are_listed_with_their_ends(run):
    leaves = [json.loads(line) for line in run("pki", "show", "--json").splitlines()]
    assert "spiffe://casemate.internal/svc/auth" in {leaf["spiffe_id"] for leaf in leaves}


def test_health_says_who_serves(run, state):
    address = f"127.0.0.1:{json.loads((state / 'endpoints.json').read_text())['grpc']['auth']}"
    identity = state / "pki/leaves/t/acme/caller"
    assert run("health", "auth", "--address", address, "--identity", identity) == "SERVING\n"
    # The same address under another service's name: the certificate does not say so.
    run("health", "datasets", "--address", address, "--identity", identity, expect=1)
    assert run("health", "inference") == "SERVING\n"
    assert run("health", "auth", "--answers", "--address", address, "--identity", identity) == "ANSWERS\n"
    run("health", "datasets", "--answers", "--address", address, "--identity", identity, expect=1)


def test_key_file_is_never_overwritten(run, tmp_path):
    file = tmp_path / "key.pem"
    run("signer", "create", file)
    before = file.read_bytes()
    assert "exists" in run("signer", "create", file, expect=1)
    assert file.read_bytes() == before


def test_file_that_is_no_text_is_refused_in_one_line(run, supplier, tmp_path):
    file = tmp_path / "people.csv"
    file.write_bytes(b"height\n\xff\xfe\n")
    said = run("dataset", "push", file, "--key", supplier, *SUPPLIER, expect=1)
    assert (said.count("\n"), said.count("is not UTF-8")) == (1, 1), "and once"
    file.write_bytes(b"")
    assert "is empty" in run("dataset", "push", file, "--key", supplier, *SUPPLIER, expect=1)


def test_file_that_cannot_be_written_is_named_in_one_line(run, supplier):
    trust = ("--trust", f"{supplier}.pub")
    assert "/nowhere/out.csv" in run(
        "dataset", "pull", "people", *trust, "--out", "/nowhere/out.csv", *SUPPLIER, expect=1
    )


def test_pull_replaces_neither_a_device_nor_a_link_by_a_file(run, supplier, tmp_path):
    file, fifo, link = tmp_path / "people.csv", tmp_path / "fifo", tmp_path / "link.csv"
    file.write_text(DATA)
    run("dataset", "push", file, "--key", supplier, *SUPPLIER)
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "behind.csv")
    pull = ("dataset", "pull", "people", "--trust", f"{supplier}.pub", "--out")
    for out in (fifo, tmp_path):
        assert f"{out} is no file" in run(*pull, out, *SUPPLIER, expect=1)
    assert fifo.is_fifo()
    for _ in range(2):  # whether there is a file behind it or not
        run(*pull, link, *SUPPLIER)
        assert (link.is_symlink(), (tmp_path / "behind.csv").read_text()) == (True, DATA)


def test_command_without_an_identity_says_how_to_give_one(run):
    assert "--as TENANT/NAME" in run("tenant", "create", "nobody", expect=1)


def test_buf_curl_lists_services_and_asks_by_reflection(run, state):
    """An independent gRPC client in another language, with nothing of ours but a certificate and a token."""
    address = f"https://127.0.0.1:{json.loads((state / 'endpoints.json').read_text())['grpc']['inference']}"
    leaf = state / "pki/leaves/t/acme/caller"
    token = run("token", "inference", "--as", "acme/caller").strip()
    curl = [
        *(CASEMATE.parent / "buf", "curl", "--protocol", "grpc", "--servername", "inference.casemate.internal"),
        *("--cacert", leaf / "ca.pem", "--cert", leaf / "cert.pem", "--key", leaf / "key.pem"),
    ]

    def ask(*arguments: str, authorization: str) -> subprocess.CompletedProcess[str]:
        header = f"authorization: {authorization}"
        command = [*curl, "--reflect-header", header, *arguments]
        command += ["-H", header] if "-d" in arguments else []
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)

    listed = ask("--list-services", address, authorization=f"Bearer {token}")
    assert listed.returncode == 0, listed.stderr
    assert {"inference.GRPCInferenceService", "casemate.inference.v1.ModelService"} <= set(listed.stdout.split())
    ready = f"{address}/inference.GRPCInferenceService/ModelReady"
    answer = ask("-d", '{"name": "digits"}', ready, authorization=f"Bearer {token}")
    assert json.loads(answer.stdout) == {"ready": True}
    assert ask("--list-services", address, authorization="Bearer nothing").returncode != 0


@pytest.fixture
def elsewhere(run, state, tmp_path):
    """Commands of a machine that has no cluster, only a leaf, and profiles."""
    run("pki", "issue", "acme/remote")
    said = json.loads((state / "endpoints.json").read_text())["grpc"]
    places = [word for name, port in said.items() for word in (f"--{name}", f"127.0.0.1:{port}")]

    def asked(*arguments: str | Path, expect: int = 0) -> str:
        words = ["--state", tmp_path / "none", "--profiles", tmp_path / "profiles", *arguments]
        done = subprocess.run([CASEMATE, *words], check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == expect, done.stderr
        return done.stdout if expect == 0 else done.stderr

    for name in ("casemate/operator", "acme/remote"):
        leaf = StateDirectory(state).client_leaf(*name.split("/"))
        asked("profile", "create", name.split("/")[1], "--identity", leaf, *places)
    return asked


def test_a_profile_says_who_calls_and_where(elsewhere):
    assert "acme" in elsewhere("--profile", "operator", "tenant", "list")
    assert elsewhere("--profile", "operator", "health", "auth") == "SERVING\n"
    # The same places, as somebody who may not:
    assert "CLIENT_UNKNOWN" in elsewhere("--profile", "remote", "tenant", "list", expect=1)


def test_what_a_command_says_itself_holds_over_its_profile(elsewhere):
    refused = elsewhere("--profile", "operator", "tenant", "list", "--auth", "127.0.0.1:1", expect=1)
    assert "UNAVAILABLE" in refused
