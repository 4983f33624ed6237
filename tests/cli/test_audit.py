"""`casemate audit`: an operator asks whether the file is whole, and why a call was refused."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from casemate.cli.explanations import _MEANINGS, explain
from casemate.cli.main import command
from casemate.errors import Reason
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.own_policies import own_policies
from casemate.gate.core.audit import AuditEvent

PULL = "/casemate.datasets.v1.DatasetService/PullDataset"
WHO = {
    "tenant": "acme",
    "client_id": "acme-trainer",
    "spiffe_id": "spiffe://casemate.internal/t/acme/trainer",
    "token_id": "-1f2e",
}


def denied(request_id, reason, **more):
    fields = {"method": PULL, **WHO, **more}
    return AuditEvent(at=datetime.now(UTC), request_id=request_id, decision="denied", reason=reason, **fields)


@pytest.fixture
def state(tmp_path):
    audit = AuditFile(tmp_path / "audit" / "datasets.jsonl")
    audit.record(denied("aa11", "GRANT_MISSING", resource="dataset/my digits"))
    for number in range(20):
        audit.record(denied(f"bb{number}", "INSUFFICIENT_SCOPE"))
    audit.record(
        AuditEvent(at=datetime.now(UTC), request_id="cc", method=PULL, decision="allowed", outcome="OK", **WHO)
    )
    audit.close()
    return tmp_path


def run(state, *arguments, expect=0):
    done = CliRunner().invoke(command, ["--state", str(state), "audit", *map(str, arguments)])
    assert done.exit_code == expect, done.output
    return done.output


def test_why_says_the_true_reason_and_a_command_that_can_be_typed(state):
    said = run(state, "why", "aa11")
    assert "GRANT_MISSING" in said
    assert "The caller was told NOT_FOUND" in said
    typed = shlex.split(said.rpartition("to mend it:")[2])
    assert typed == [
        *("casemate", "grant", "create", "--tenant", "acme", "--caller", "t/acme/trainer"),
        *("--verb", "read", "--resource", "dataset/my digits", "--as", "casemate/operator"),
    ]


def test_why_looks_into_the_audit_of_another_teams_service_that_is_kept_here(state):
    audit = AuditFile(state / "audit" / "greeter.jsonl")
    audit.record(denied("ee", "INSUFFICIENT_SCOPE", method="/examples.greeter.Greeter/Greet"))
    audit.close()
    assert "refused by greeter" in run(state, "why", "ee")
    assert "refused by datasets" in run(state, "why", "aa11")


def test_why_finds_a_repeat_by_its_own_identifier(state):
    said = run(state, "why", "bb7")
    assert "repeats     19" in said
    assert "--scope datasets.read" in said
    assert json.loads(run(state, "why", "bb0", "--json"))["reason"] == "INSUFFICIENT_SCOPE"


def test_why_of_an_allowed_call_says_how_it_ended_and_of_an_unknown_one_that_it_is_not_there(state):
    assert "allowed by datasets, and ended OK" in run(state, "why", "cc")
    assert "not in the audit" in run(state, "why", "dd", expect=1)


def test_verify_passes_a_whole_file_and_names_what_was_done_to_another(state):
    file = state / "audit" / "datasets.jsonl"
    said = run(state, "verify", file)
    assert "4 lines, one chain, 1 checkpoints, 0 events lost" in said
    head = said.split()[-1]
    assert run(state, "verify", file, "--head", head)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert "cut off" in run(state, "verify", file, expect=1)
    (state / "audit" / "datasets.jsonl.heads").unlink()
    assert run(state, "verify", file)  # nothing here remembers
    assert "cut off" in run(state, "verify", file, "--head", head, expect=1)
    file.write_bytes(b"".join(lines).replace(b"acme-trainer", b"acme-bandit"))
    assert "line 1 does not follow" in run(state, "verify", file, expect=1)
    run(state, "verify", file, "--head", "4", expect=2)


@pytest.mark.parametrize("reason", sorted(_MEANINGS))
def test_every_reason_is_explained_in_whole_sentences(reason):
    told = explain({"reason": reason, "method": PULL, "resource": "dataset/x", **WHO}, own_policies())
    assert told.meaning.endswith(".")
    assert "{" not in f"{told.meaning}{told.command}"
    bare = explain({"reason": reason, "method": "/x/y"}, own_policies())
    assert "{" not in f"{bare.meaning}{bare.command}"


def parsed(arguments):
    """The command that these words mean, its options and arguments taken apart and judged; nothing is run."""
    context, words = command.make_context("casemate", list(arguments)), list(arguments)
    while isinstance(context.command, click.Group):
        name, inner, words = context.command.resolve_command(context, words)
        context = inner.make_context(name, words, parent=context)
    return context


SAID = [(reason, how) for reason in sorted(_MEANINGS) if _MEANINGS[reason][1] is not None for how in ("known", "bare")]


@pytest.mark.parametrize(("reason", "how"), SAID)
def test_every_command_that_is_named_is_one(reason, how):
    """Where all is known it parses as it stands; where not, every word in capitals can be filled in."""
    record = (
        {"reason": reason, "method": PULL, "resource": "dataset/x", **WHO} if how == "known" else {"method": "/x/y"}
    )
    told = explain({**record, "reason": reason}, own_policies()).command
    words = ["read" if word == "VERB" else word for word in shlex.split(told)]
    assert words[0] == "casemate"
    assert parsed(words[1:]).params
    if how == "known":
        assert not any(word.isupper() for word in words)
    with pytest.raises(click.UsageError):
        parsed([*words[1:], "--no-such-option"])


@pytest.mark.parametrize("thief", ["t/globex/mallory", "svc/greeter", "t/acme/mallory"])
def test_of_a_stolen_token_it_is_said_whose_it_is_and_how_to_end_it_and_nothing_is_offered_to_the_thief(thief):
    name = f"spiffe://casemate.internal/{thief}"
    told = explain({"reason": "CERTIFICATE_MISMATCH", "method": PULL, **WHO, "spiffe_id": name}, own_policies())
    assert shlex.split(told.command) == ["casemate", "revoke", "token", "--as", "casemate/operator", "--", "-1f2e"]
    assert (
        f"The token of acme-trainer came with a certificate that did not ask for it, the one of {name}" in told.meaning
    )
    # Of its own tenant it may be the owner with a new certificate; of another it cannot.
    assert ("renewed" in told.meaning) == (thief == "t/acme/mallory")
    assert ("nobody of acme: the token was copied" in told.meaning) == (thief != "t/acme/mallory")


def test_a_scope_that_is_lacked_is_mended_by_a_client_that_does_not_exist_yet():
    """A client's scopes do not change, and its name and its certificate's are taken."""
    told = explain({"reason": "INSUFFICIENT_SCOPE", "method": PULL, **WHO}, own_policies()).command
    typed = shlex.split(told)
    assert typed[typed.index("create") + 1] == "acme-trainer-2"
    assert typed[typed.index("--spiffe-id") + 1] == "spiffe://casemate.internal/t/acme/trainer-2"
    at_headers = {"reason": "INSUFFICIENT_SCOPE", "method": PULL, "tenant": "acme", "client_id": "acme-trainer"}
    assert "spiffe://DOMAIN/t/acme/NAME-2" in explain(at_headers, own_policies()).command


def test_every_refusal_of_the_gate_has_its_explanation():
    gates = {
        *(Reason.TOKEN_MISSING, Reason.TOKEN_INVALID, Reason.TOKEN_EXPIRED, Reason.TOKEN_REVOKED),
        *(Reason.CERTIFICATE_MISMATCH, Reason.PEER_REFUSED, Reason.INSUFFICIENT_SCOPE, Reason.CALLER_NOT_ALLOWED),
        *(Reason.RATE_LIMITED, Reason.TRUST_STALE, Reason.NOT_SERVED, Reason.DEPENDENCY_UNAVAILABLE),
    }
    assert {reason.value for reason in gates} | {"GRANT_MISSING", "SERVER_FULL", "RESOURCE_EXHAUSTED"} == set(_MEANINGS)
