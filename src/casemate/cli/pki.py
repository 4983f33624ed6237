"""`casemate pki …`: the development certificate authority."""

from __future__ import annotations

import json

import click

from casemate.cli.certificates import Certificates
from casemate.cli.main import Options
from casemate.cli.state import StateDirectory
from casemate.pki.leaves import list_leaves


@click.group("pki")
def pki_command() -> None:
    """The development certificate authority: a P-256 root, and leaves of 24 hours."""


def _open(options: Options, trust_domain: str) -> Certificates:
    state = StateDirectory(options.state)
    state.create()
    return Certificates.open(state, trust_domain=trust_domain, report=click.echo)


@pki_command.command("init")
@click.option("--trust-domain", default="casemate.internal", show_default=True)
@click.pass_obj
def init(options: Options, trust_domain: str) -> None:
    """Makes the authority and the leaves of the three services, where they are missing."""
    _open(options, trust_domain).renew_due()
    click.echo(f"authority: {StateDirectory(options.state).authority}")


@pki_command.command("issue")
@click.argument("identity", metavar="TENANT/NAME")
@click.option("--trust-domain", default="casemate.internal", show_default=True)
@click.pass_obj
def issue(options: Options, identity: str, trust_domain: str) -> None:
    """Issues a client certificate for 24 hours; prints its directory."""
    tenant, separator, name = identity.partition("/")
    if not separator:
        raise click.BadParameter("give TENANT/NAME", param_hint="IDENTITY")
    certificates = _open(options, trust_domain)
    certificates.require_client(tenant, name)
    click.echo(StateDirectory(options.state).client_leaf(tenant, name))


@pki_command.command("renew")
@click.option("--trust-domain", default="casemate.internal", show_default=True)
@click.option(
    "--all", "every", is_flag=True, help="Renew every leaf, due or not: after a key was exposed, or to drill."
)
@click.pass_obj
def renew(options: Options, trust_domain: str, every: bool) -> None:
    """Renews every leaf that is past half its life. Running services take them up within a second."""
    certificates = _open(options, trust_domain)
    if every:
        certificates.reissue_all()
    else:
        certificates.renew_due()


@pki_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def show(options: Options, as_json: bool) -> None:
    """Lists the leaves of the state directory, and when they end."""
    for leaf in list_leaves(StateDirectory(options.state).root / "pki" / "leaves"):
        said = {"spiffe_id": leaf.spiffe_id, "not_after": leaf.not_after.isoformat(), "thumbprint": leaf.thumbprint}
        click.echo(json.dumps(said) if as_json else "  ".join(said.values()))
