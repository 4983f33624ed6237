"""`casemate operator|tenant|client|grant|signer …`."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from casemate.cli.children import find_checkout
from casemate.cli.connection import with_session
from casemate.cli.credentials import key_command, secret_command
from casemate.cli.keys import load_public_key, load_signing_key, write_signing_key
from casemate.cli.listing import list_clients, list_grants, list_operators, list_signers, list_tenants, show_client
from casemate.client.admin import Administration, Authentication
from casemate.client.session import Session
from casemate.errors import ConfigurationError
from casemate.gate.core.records import VERBS as GRANTABLE
from casemate.signing.keys import SigningKey
from casemate.signing.registration import sign_registration
from casemate.signing.signers import Role

VERBS = (*GRANTABLE, "*")

MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.group("operator")
def operator_command() -> None:
    """Operators: who administers, and the first of them."""


operator_command.add_command(list_operators)


@operator_command.command("bootstrap")
@click.option("--client-id", default="operator", show_default=True)
@click.option("--spiffe-id", required=True, help="Inside the house tenant: spiffe://DOMAIN/t/casemate/NAME.")
@click.option("--replace", is_flag=True, help="In place of the operator made last, which is disabled and revoked.")
@click.option("--reason", default="", help="Why it is replaced; the transparency log is told.")
def bootstrap(client_id: str, spiffe_id: str, replace: bool, reason: str) -> None:
    """Makes the first operator, once per database, by no rpc.

    Runs on the machine of auth, with auth's own settings in the environment: it needs
    the database role and the key-encryption key. With --replace it breaks the glass:
    for when the operator's key is stolen or lost, and nobody else administers.
    """
    arguments = ["-m", "services.auth", "bootstrap-operator", "--client-id", client_id, "--spiffe-id", spiffe_id]
    if replace:
        arguments += ["--replace", "--reason", reason]
    environment = {**os.environ, "PYTHONPATH": str(find_checkout())}  # noqa: TID251  # auth's own settings are meant
    done = subprocess.run([sys.executable, *arguments], env=environment, check=False)  # noqa: S603  # ours
    if done.returncode:
        raise ConfigurationError("the operator was not made")


@click.group("tenant")
def tenant_command() -> None:
    """Tenants. A name that was given stays given: there is no way to remove one."""


tenant_command.add_command(list_tenants)


@tenant_command.command("create")
@click.argument("tenant")
@with_session
def create_tenant(session: Session, tenant: str) -> None:
    """Creates TENANT."""
    Administration(session).create_tenant(tenant)
    click.echo(f"tenant {tenant} created")


@click.group("client")
def client_command() -> None:
    """Who may ask for tokens."""


client_command.add_command(list_clients)
client_command.add_command(show_client)
client_command.add_command(secret_command)
client_command.add_command(key_command)


@client_command.command("create")
@click.argument("client_id")
@click.option("--tenant", required=True)
@click.option("--spiffe-id", required=True, help="Inside spiffe://DOMAIN/t/TENANT/.")
@click.option("--audience", "audiences", multiple=True, required=True)
@click.option("--scope", "scopes", multiple=True, required=True)
@click.option(
    "--authentication",
    type=click.Choice(["certificate", "private-key-jwt", "secret"]),
    default="certificate",
    show_default=True,
    help="What it shows: its certificate alone, or something of its own besides.",
)
@with_session
def create_client(
    session: Session,
    client_id: str,
    tenant: str,
    spiffe_id: str,
    audiences: tuple[str, ...],
    scopes: tuple[str, ...],
    authentication: Authentication,
) -> None:
    """Registers CLIENT_ID: its certificate's SPIFFE ID, and what its tokens may be for.

    `TENANT.` before it is that tenant's alone; an administrator of one tenant only has to begin with it.
    """
    Administration(session).create_client(
        client_id=client_id,
        tenant=tenant,
        spiffe_id=spiffe_id,
        audiences=audiences,
        scopes=scopes,
        authentication=authentication,
    )
    click.echo(f"client {client_id} created")


@client_command.command("disable")
@click.argument("client_id")
@with_session
def disable_client(session: Session, client_id: str) -> None:
    """Disables CLIENT_ID, and revokes the tokens that it holds. `enable` takes the first back, and not the second."""
    Administration(session).disable_client(client_id)
    click.echo(f"client {client_id} disabled")


@client_command.command("enable")
@click.argument("client_id")
@with_session
def enable_client(session: Session, client_id: str) -> None:
    """Lets CLIENT_ID, which was disabled, have tokens again. What it held then stays dead."""
    until = Administration(session).enable_client(client_id)
    click.echo(f"client {client_id} enabled")
    if until is not None:
        click.echo(f"tokens that are issued to it up to {until:%Y-%m-%dT%H:%M:%SZ} are refused all the same")


@click.group("grant")
def grant_command() -> None:
    """Who may do what to which resource."""


grant_command.add_command(list_grants)


@grant_command.command("create")
@click.option("--tenant", required=True, help="Whose resources it is about.")
@click.option("--caller", required=True, help="t/TENANT/NAME, or t/TENANT/*.")
@click.option("--verb", required=True, type=click.Choice(VERBS))
@click.option("--resource", required=True, help="dataset/NAME[/VERSION] or model/NAME; * for a whole segment.")
@click.option("--expires", type=click.DateTime(), default=None, help="When it ends, in UTC [default: never].")
@click.option("--deny", is_flag=True, help="Take the verb away instead, whatever else gives it.")
@with_session
def create_grant(
    session: Session, tenant: str, caller: str, verb: str, resource: str, expires: datetime | None, deny: bool
) -> None:
    """Allows callers a verb on a resource, or denies it."""
    identifier = Administration(session).create_grant(
        tenant=tenant,
        caller=caller,
        verb=verb,
        resource=resource,
        expires_at=None if expires is None else expires.replace(tzinfo=UTC),
        deny=deny,
    )
    click.echo(identifier)


@grant_command.command("delete")
@click.argument("identifier")
@with_session
def delete_grant(session: Session, identifier: str) -> None:
    """Removes the grant IDENTIFIER."""
    Administration(session).delete_grant(identifier)
    click.echo(f"grant {identifier} removed")


@click.group("signer")
def signer_command() -> None:
    """Whose signatures count."""


signer_command.add_command(list_signers)


@signer_command.command("create")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--algorithm",
    type=click.Choice(["ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-sha256"]),
    default="ed25519",
    show_default=True,
)
def create_signer(file: Path, algorithm: str) -> None:
    """Makes a key pair: FILE, which only you should ever hold, and FILE.pub."""
    key = SigningKey.generate(algorithm)  # type: ignore[arg-type]  # click checked the choice
    write_signing_key(file, key)
    click.echo(f"key id {key.public.key_id}")


@signer_command.command("prove")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--tenant", required=True)
@click.option("--role", type=click.Choice(["supplier", "publisher", "operator"]), required=True)
@click.option("--trust-domain", default="casemate.internal", show_default=True)
def prove_signer(file: Path, tenant: str, role: Role, trust_domain: str) -> None:
    """Prints the proof that the private key FILE is held, for an operator to register."""
    key = load_signing_key(file)
    audience = f"auth.{trust_domain}"
    click.echo(sign_registration(tenant, role, key, audience).decode())


@signer_command.command("register")
@click.argument("public_key", type=click.Path(path_type=Path, exists=True))
@click.option("--proof", type=click.File("rb"), required=True, help="What `signer prove` printed.")
@click.option("--tenant", required=True)
@click.option("--role", type=click.Choice(["supplier", "publisher", "operator"]), required=True)
@click.option("--valid-until", type=MOMENT, help="Last moment at which it counts, UTC [default: in a year].")
@with_session
def register_signer(
    session: Session, public_key: Path, proof: BinaryIO, tenant: str, role: Role, valid_until: datetime | None
) -> None:
    """Registers PUBLIC_KEY (PEM) as a signer of a tenant."""
    key = load_public_key(public_key)
    key_id = Administration(session).register_signer(
        tenant=tenant, role=role, public_key=key.der, proof=proof.read().strip(), valid_until=_utc(valid_until)
    )
    click.echo(f"key id {key_id}")


@signer_command.command("revoke")
@click.argument("key_id")
@click.option("--compromised-since", type=MOMENT, help="UTC [default: from the beginning].")
@with_session
def revoke_signer(session: Session, key_id: str, compromised_since: datetime | None) -> None:
    """Revokes a signer: nothing that it signed since a moment is trusted."""
    Administration(session).revoke_signer(key_id, compromised_since=_utc(compromised_since))
    click.echo(f"signer {key_id} revoked")


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
