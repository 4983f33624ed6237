"""`casemate pki …`: the development certificate authority, and the one of a deployment of containers."""

from __future__ import annotations

import json
import signal
import threading
from datetime import timedelta
from pathlib import Path

import click

from casemate.cli.certificates import SERVICE_PREFIX, Certificates
from casemate.cli.deployment_options import open_deployment, with_deployment
from casemate.cli.main import Options
from casemate.cli.roots import root_command
from casemate.cli.state import StateDirectory
from casemate.errors import CasemateError
from casemate.pki.leaves import list_leaves


@click.group("pki")
def pki_command() -> None:
    """The development certificate authority: a P-256 root, and leaves of 24 hours."""


def _open(options: Options, trust_domain: str) -> Certificates:
    state = StateDirectory(options.state)
    state.create()
    return Certificates.open(state, trust_domain=trust_domain, report=click.echo)


pki_command.add_command(root_command)


@pki_command.command("init")
@click.option("--trust-domain", default="casemate.internal", show_default=True)
@click.pass_obj
def init(options: Options, trust_domain: str) -> None:
    """Makes the authority and the leaves of the three services, where they are missing."""
    _open(options, trust_domain).renew_due()
    click.echo(f"authority: {StateDirectory(options.state).authority}")


@pki_command.command("issue")
@click.argument("identity", metavar="TENANT/NAME|svc/NAME")
@click.option("--trust-domain", default="casemate.internal", show_default=True)
@click.option("--anew", is_flag=True, help="Also where there is a good one: its key was exposed, or it was revoked.")
@click.pass_obj
def issue(options: Options, identity: str, trust_domain: str, anew: bool) -> None:
    """Issues a certificate for 24 hours; prints its directory.

    TENANT/NAME is a client. svc/NAME is a service: it serves as NAME.DOMAIN, and calls.
    """
    tenant, separator, name = identity.partition("/")
    if not separator:
        raise click.BadParameter("give TENANT/NAME or svc/NAME", param_hint="IDENTITY")
    certificates = _open(options, trust_domain)
    state = StateDirectory(options.state)
    if tenant == SERVICE_PREFIX:
        certificates.require_service(name, anew=anew)
        click.echo(state.service_leaf(name))
        return
    certificates.require_client(tenant, name, anew=anew)
    click.echo(state.client_leaf(tenant, name))


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


@pki_command.command("keep")
@with_deployment
def keep(authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Makes secrets and certificates of a deployment, and renews the latter at half life, until SIGTERM.

    Each step of `pki root … --deployment` reaches every leaf by the next look: within a 24th of
    the leaves' lifetime, and never later than a minute.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    deployment = open_deployment(authority, issued, trust_domain, lifetime, create=True)
    deployment.renew_due()
    click.echo("ready")
    look_every = min(60.0, max(1.0, lifetime.total_seconds() / 24))
    while not ended.wait(look_every):
        try:
            deployment.renew_due()
        except (CasemateError, OSError) as error:
            # Half a life is left: the next looks may find the disk with room again.
            click.echo(f"not renewed, and will be tried again: {error}")


@pki_command.command("check")
@with_deployment
def check(authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Exits 0 when `keep` does its work: every leaf of the deployment is there and renewed in time."""
    open_deployment(authority, issued, trust_domain, lifetime).require_healthy()
    click.echo("every leaf is current")


@pki_command.command("client")
@click.argument("identity", metavar="TENANT/NAME")
@with_deployment
def client(identity: str, authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Issues a client of a deployment its certificate, which `keep` renews; prints its folder."""
    tenant, separator, name = identity.partition("/")
    if not separator:
        raise click.BadParameter("give TENANT/NAME", param_hint="IDENTITY")
    click.echo(open_deployment(authority, issued, trust_domain, lifetime).issue_client(tenant, name))
