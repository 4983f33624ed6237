"""Models as a publisher and an operator handle them by command: publish, go back, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from casemate.cli.state import StateDirectory
from tests.services.inference.identity import identity
from tests.support.up import CASEMATE, PATIENCE, running

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "train-and-predict.md"
OPERATOR = ("--as", "casemate/operator")
TRAINER = ("--as", "acme/echoer")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """On a cluster whose inference is two processes: what one takes in, both serve."""
    with running(tmp_path_factory.mktemp("models") / "state", "--inference-workers", "2") as commands:
        yield commands


def register(run, folder: Path, role: str) -> Path:
    key = folder / f"{role}.pem"
    run("signer", "create", key)
    proof = key.with_suffix(".proof")
    proof.write_text(run("signer", "prove", key, "--tenant", "acme", "--role", role))
    run("signer", "register", f"{key}.pub", "--proof", proof, "--tenant", "acme", "--role", role, *OPERATOR)
    return key


def grant(run, verb: str, resource: str) -> None:
    what = ("--verb", verb, "--resource", resource)
    run("grant", "create", "--tenant", "acme", "--caller", "t/acme/echoer", *what, *OPERATOR)


@pytest.fixture(scope="module")
def modeller(run, tmp_path_factory):
    """Keys of a supplier, a publisher and an operator, a dataset's root, and somebody who may do it all."""
    folder = tmp_path_factory.mktemp("keys")
    run("pki", "issue", "acme/echoer")
    spiffe_id = "spiffe://casemate.internal/t/acme/echoer"
    scopes = ("datasets.write", "datasets.read", "models.publish", "models.infer")
    run(
        *("client", "create", "acme-echoer", "--tenant", "acme", "--spiffe-id", spiffe_id),
        *("--audience", "datasets", "--audience", "inference"),
        *(word for scope in scopes for word in ("--scope", scope)),
        *OPERATOR,
    )
    for verb, resource in (("push", "dataset/numbers"), ("read", "dataset/numbers"), ("publish", "model/echo")):
        grant(run, verb, resource)
    keys = {role: register(run, folder, role) for role in ("supplier", "publisher", "operator")}
    data = folder / "numbers.csv"
    data.write_text("a,b\n1,2\n3,4\n")
    pushed = json.loads(run("dataset", "push", data, "--key", keys["supplier"], "--json", *TRAINER))
    return keys, pushed["root"]


def publish(run, modeller, file: Path, number: int, *more: str | Path, name: str = "echo", expect: int = 0) -> str:
    keys, root = modeller
    signed = ("--key", keys["publisher"], "--dataset-root", root)
    arguments = (
        "model",
        "publish",
        file,
        "--name",
        name,
        "--number",
        str(number),
        *signed,
        "--json",
        *more,
        *TRAINER,
    )
    return run(*arguments, expect=expect)


def test_an_operator_goes_back_to_an_older_version_and_a_publisher_cannot(run, modeller, tmp_path):
    keys, _ = modeller
    file = tmp_path / "model.onnx"
    file.write_bytes(identity("FP32"))
    first, _second = (json.loads(publish(run, modeller, file, number)) for number in (1, 2))
    label = ("model", "label", "echo", "stable", "--tenant", "acme", "--number", "1", "--digest", first["digest"])
    refused = run(*label, "--key", keys["publisher"], *OPERATOR, expect=1)
    assert "SIGNER_UNTRUSTED" in refused
    assert run(*label, "--key", keys["operator"], *OPERATOR).strip() == "stable=1"
    away = ("model", "label", "echo", "stable", "--tenant", "acme", "--number", "0", "--key", keys["operator"])
    assert run(*away, *OPERATOR).strip() == "echo has no label"
    assert "number 2 is taken; the next is 3" in publish(run, modeller, file, 2, expect=1)


def test_publishing_a_model_with_external_data_says_how_to_inline_it(run, modeller, tmp_path):
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"])], "g", tensors[:1], tensors[1:], [weight]
    )
    file = tmp_path / "model.onnx"
    file.write_bytes(helper.make_model(graph).SerializeToString())
    said = publish(run, modeller, file, 3, expect=1)
    assert "save_as_external_data=False" in said


def test_options_are_signed_with_the_model_and_a_back_ends_model_is_one_file(run, modeller, tmp_path):
    file, options = tmp_path / "any.onnx", tmp_path / "options.json"
    file.write_bytes(identity("FP32"))
    options.write_text('{"queue": "many"}')
    refused = publish(run, modeller, file, 3, "--options", options, expect=1)
    assert "serving.json" in refused
    options.write_text('{"instances": 1, "queue": 8}')
    assert json.loads(publish(run, modeller, file, 3, "--options", options))["number"] == 3
    upstream = tmp_path / "upstream.json"
    upstream.write_text('{"backend": "nowhere"}')
    assert "upstream.json" in publish(run, modeller, upstream, 4, expect=1)


def test_the_way_from_a_dataset_to_predictions_goes_as_the_page_prints_it(run, tmp_path):
    ports = json.loads((run.state / "endpoints.json").read_text())["grpc"]
    page = PAGE.read_text()
    for service, port in (("auth", 7401), ("inference", 7402), ("datasets", 7403)):
        page = page.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[service]}")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.replace(".casemate/", f"{run.state}/"), re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", "set -eu\n" + 'casemate() { "$CASEMATE" --state "$STATE" "$@"; }\n' + "".join(blocks)],
        cwd=tmp_path,
        env={
            "CASEMATE": str(CASEMATE),
            "STATE": str(run.state),
            "PATH": f"{CASEMATE.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "kinds: 0 2" in done.stdout
    assert '"model": "flowers"' in done.stdout


def listed(run, *options: str, until: str) -> str:
    """What `model list` prints once it says that: each worker learns of grants and of versions by itself."""
    deadline = time.monotonic() + PATIENCE
    while until not in (said := run("model", "list", *options, *TRAINER)):
        assert time.monotonic() < deadline, said
    return said


def test_models_are_listed_with_states_and_labels_to_whoever_may_describe_them_and_to_nobody_else(
    run, modeller, tmp_path
):
    keys, _ = modeller
    file = tmp_path / "model.onnx"
    file.write_bytes(identity("FP32"))
    for name in ("hidden", "listed"):
        grant(run, "publish", f"model/{name}")
        published = json.loads(publish(run, modeller, file, 1, name=name))
    label = ("model", "label", "listed", "canary", "--tenant", "acme", "--number", "1")
    run(*label, "--digest", published["digest"], "--key", keys["operator"], *OPERATOR)
    assert [run("model", "list", *form, *TRAINER) for form in ((), ("--json",))] == ["", ""]
    grant(run, "describe", "model/listed")
    assert listed(run, until="listed  1:ready  canary=1") == "listed  1:ready  canary=1\n"
    [model] = map(json.loads, listed(run, "--json", until='"ready"').splitlines())
    [version] = model.pop("versions")
    assert model == {"model": "listed", "labels": {"canary": 1}}
    assert version.pop("signer_key_id")
    assert version == {"number": 1, "state": "ready", "reason": None, "manifest_sha256": published["digest"]}


@pytest.mark.usefixtures("modeller")  # it has a certificate
def test_each_worker_that_was_asked_for_keeps_an_audit_of_its_own_and_why_looks_into_all(run):
    files = {path.name for path in StateDirectory(run.state).audits() if path.name.startswith("inference.")}
    assert files == {"inference.0.jsonl", "inference.1.jsonl"}
    refused = run("model", "reload", "nobodys", *TRAINER, expect=1)
    [request_id] = re.findall(r"request ([0-9a-f]{16})", refused)
    assert "refused by inference." in run("audit", "why", request_id)
