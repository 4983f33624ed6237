"""`casemate profile`: named deployments to call.

    casemate profile create prod --identity ./acme-trainer
    casemate --profile prod dataset push train.csv --key signer.pem

There is no present profile that a command of yesterday could have left behind: each
command names one, or its shell does (`CASEMATE_PROFILE`).
"""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.listing import show, with_json
from casemate.cli.main import Options
from casemate.cli.profiles import Profile, Profiles
from casemate.cli.state import PORTS
from casemate.client.session import Endpoints
from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource


@click.group("profile")
def profile_command() -> None:
    """Named deployments: `casemate --profile NAME …` calls one as who it says."""


@profile_command.command("create")
@click.argument("name")
@click.option(
    "--identity",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Directory with key.pem, cert.pem and ca.pem; it is named, not copied.",
)
@click.option("--trust-domain", default=None, help="SPIFFE trust domain [default: the certificate's].")
@click.option("--auth", default=None, help="host:port [default: auth.TRUST_DOMAIN:7401].")
@click.option("--inference", default=None, help="host:port [default: inference.TRUST_DOMAIN:7402].")
@click.option("--datasets", default=None, help="host:port [default: datasets.TRUST_DOMAIN:7403].")
@click.option("--replace", is_flag=True, help="In place of the one of that name.")
@click.pass_obj
def create(
    options: Options, /, name: str, identity: Path, trust_domain: str | None, *, replace: bool, **places: str | None
) -> None:
    """Keeps NAME: whose certificate calls, and where the services are. Nothing is called."""
    source = CertificateSource(identity)
    domain = trust_domain or source.current.trust_domain
    found = {service: places[service] or f"{service}.{domain}:{port}" for service, port in PORTS.items()}
    for service, place in found.items():
        _require_address(service, place)
    profile = Profile(identity=identity.resolve(), trust_domain=domain, endpoints=Endpoints(**found))
    Profiles(options.profiles).keep(name, profile, replace=replace)
    click.echo(f"{name}: {source.current.spiffe_id}, by way of {found['auth']}")


@profile_command.command("list")
@with_json
@click.pass_obj
def list_profiles(options: Options, *, as_json: bool) -> None:
    """Lists the profiles."""
    profiles = Profiles(options.profiles)
    show(({"name": name, **profiles.load(name).described()} for name in profiles.names()), as_json=as_json)


@profile_command.command("remove")
@click.argument("name")
@click.pass_obj
def remove(options: Options, name: str) -> None:
    """Removes NAME; key and certificate stay where they are."""
    Profiles(options.profiles).remove(name)


def _require_address(service: str, place: str) -> None:
    host, _, port = place.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"--{service}: {place!r} is not host:port")
