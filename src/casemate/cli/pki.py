"""`casemate pki …`: the development certificate authority, and the one of a deployment of containers."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click

from casemate.cli.certificates import Certificates
from casemate.cli.deployment import Deployment, DeploymentFolders
from casemate.cli.main import Options
from casemate.cli.roots import root_command
from casemate.cli.state import StateDirectory
from casemate.clock import SystemClock
from casemate.errors import CasemateError
from casemate.pki.leaves import list_leaves
from casemate.settings import duration


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


class _Lifetime(click.ParamType[timedelta]):
    name = "duration"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> timedelta:
        """A duration such as `24h`."""
        try:
            return value if isinstance(value, timedelta) else duration(str(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


_DEPLOYMENT = (
    click.option(
        "--authority",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("/var/lib/casemate/authority"),
        show_default=True,
        help="Folder of the authority's own keys.",
    ),
    click.option(
        "--issued",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("/var/lib/casemate/issued"),
        show_default=True,
        help="Folder of what the others are given, one folder each.",
    ),
    click.option("--trust-domain", default="casemate.internal", show_default=True, envvar="CASEMATE_TRUST_DOMAIN"),
    click.option(
        "--lifetime",
        type=_Lifetime(),
        default="24h",
        show_default=True,
        envvar="CASEMATE_LEAF_LIFETIME",
        help="How long a leaf lives; renewed at half.",
    ),
)


def _with_deployment(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_DEPLOYMENT):
        command = option(command)
    return command


def _deployment(
    authority: Path, issued: Path, trust_domain: str, lifetime: timedelta, *, create: bool = False
) -> Deployment:
    return Deployment.open(
        DeploymentFolders(authority=authority, issued=issued),
        trust_domain=trust_domain,
        lifetime=lifetime,
        clock=SystemClock(),
        report=click.echo,
        create=create,
    )


@pki_command.command("keep")
@_with_deployment
def keep(authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Makes secrets and certificates of a deployment, and renews the latter at half life, until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    deployment = _deployment(authority, issued, trust_domain, lifetime, create=True)
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
@_with_deployment
def check(authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Exits 0 when `keep` does its work: every leaf of the deployment is there and renewed in time."""
    _deployment(authority, issued, trust_domain, lifetime).require_healthy()
    click.echo("every leaf is current")


@pki_command.command("client")
@click.argument("identity", metavar="TENANT/NAME")
@_with_deployment
def client(identity: str, authority: Path, issued: Path, trust_domain: str, lifetime: timedelta) -> None:
    """Issues a client of a deployment its certificate, which `keep` renews; prints its folder."""
    tenant, separator, name = identity.partition("/")
    if not separator:
        raise click.BadParameter("give TENANT/NAME", param_hint="IDENTITY")
    click.echo(_deployment(authority, issued, trust_domain, lifetime).issue_client(tenant, name))
