"""`casemate audit`: whether an audit file is whole, and why a call was refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.explanations import explain
from casemate.cli.state import StateDirectory
from casemate.gate.adapters.audit_lines import Head, verify_file
from casemate.gate.adapters.own_policies import own_policies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casemate.cli.main import Options

_TOLD = ("at", "method", "reason", "tenant", "client_id", "subject", "token_id", "spiffe_id", "resource", "tls_version")


@click.group("audit")
def audit_command() -> None:
    """What the gates wrote down."""


@audit_command.command("verify")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--head", metavar="NUMBER:SHA256", default=None, help="A head from the service's log, kept elsewhere.")
def verify_audit(file: Path, head: str | None) -> None:
    """Checks that no line of FILE was changed, removed or inserted, and that its end is there."""
    try:
        verified = verify_file(file, known=_parse_head(head))
    except ValueError as error:
        click.echo(f"{file.name}: BROKEN: {error}", err=True)
        sys.exit(1)
    click.echo(
        f"{file.name}: {verified.head.number} lines, one chain, {verified.checkpoints} checkpoints, "
        f"{verified.lost} events lost"
    )
    click.echo(f"head {verified.head.number}:{verified.head.digest}")


@audit_command.command("why")
@click.argument("request_id")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Audit files [default: those of the state directory].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def why(options: Options, request_id: str, files: Sequence[Path], as_json: bool) -> None:
    """Says why the call REQUEST_ID was refused, and the command that mends it.

    A caller finds the identifier in the trailing metadata of every answer.
    """
    state = StateDirectory(options.state)
    found = list(_find(request_id, files or state.audits()))
    if not found:
        click.echo(
            f"{request_id}: not in the audit. Repeats beyond the first 32 of a second have a count only.", err=True
        )
        sys.exit(1)
    policies = own_policies()
    for file, record in found:
        if record.get("decision") != "denied":
            click.echo(f"{request_id}: allowed by {file.stem}, and ended {record.get('outcome')}")
            continue
        why = explain(record, policies)
        if as_json:
            click.echo(json.dumps({**record, "meaning": why.meaning, "command": why.command}, sort_keys=True))
            continue
        click.echo(f"{request_id}: refused by {file.stem}")
        for name in _TOLD:
            if record.get(name) is not None:
                click.echo(f"  {name:<12}{record[name]}")
        if record.get("count"):
            click.echo(f"  {'repeats':<12}{record['count']} since {record['since']}")
        click.echo(f"  {why.meaning}")
        if why.command is not None:
            click.echo(f"  to mend it:  {why.command}")


def _find(request_id: str, files: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in files:
        if not file.exists():
            continue
        with file.open("rb") as lines:
            for line in lines:
                # Most lines are others': a search in the bytes is faster than reading each as JSON.
                if request_id.encode() not in line:
                    continue
                try:
                    record: dict[str, Any] = json.loads(line)
                except ValueError:
                    continue  # `audit verify` speaks of that
                if record.get("request_id") == request_id or request_id in record.get("request_ids", ()):
                    yield file, record


def _parse_head(text: str | None) -> Head | None:
    if text is None:
        return None
    number, _, digest = text.partition(":")
    if not number.isdigit() or len(digest) != len(Head().digest):
        raise click.BadParameter("a head is NUMBER:SHA256", param_hint="--head")
    return Head(int(number), digest)
