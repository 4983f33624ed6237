"""`casemate client secret|key …`, `casemate issuer …` and `casemate token-key …`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from casemate.cli.connection import with_session
from casemate.cli.keys import load_public_key
from casemate.cli.listing import list_issuers, list_keys, list_secrets, moment, of_tenant, show, with_json
from casemate.client.admin import Administration
from casemate.client.credentials import Credentials
from casemate.client.listing import Listing
from casemate.client.session import Session
from casemate.errors import ConfigurationError


@click.group("secret")
def secret_command() -> None:
    """Generated secrets of clients."""


secret_command.add_command(list_secrets)


@secret_command.command("create")
@click.argument("client_id")
@with_session
def create_secret(session: Session, client_id: str) -> None:
    """Prints a new secret of CLIENT_ID, this once. Two may be alive, so that one replaces the other."""
    identifier, secret = Credentials(session).create_secret(client_id)
    click.echo(f"secret {identifier}", err=True)
    click.echo(secret.reveal())


@secret_command.command("delete")
@click.argument("client_id")
@click.argument("identifier")
@with_session
def delete_secret(session: Session, client_id: str, identifier: str) -> None:
    """Ends the secret IDENTIFIER of CLIENT_ID."""
    Credentials(session).delete_secret(client_id, identifier)
    click.echo(f"secret {identifier} ended")


@click.group("key")
def key_command() -> None:
    """Keys whose assertions (private_key_jwt) prove clients."""


key_command.add_command(list_keys)


@key_command.command("add")
@click.argument("client_id")
@click.argument("public_key", type=click.Path(path_type=Path, exists=True))
@with_session
def add_key(session: Session, client_id: str, public_key: Path) -> None:
    """Adds PUBLIC_KEY (PEM) to CLIENT_ID."""
    key_id = Credentials(session).add_key(client_id, load_public_key(public_key).der)
    click.echo(f"key id {key_id}")


@key_command.command("remove")
@click.argument("client_id")
@click.argument("key_id")
@with_session
def remove_key(session: Session, client_id: str, key_id: str) -> None:
    """Ends the key KEY_ID of CLIENT_ID."""
    Credentials(session).remove_key(client_id, key_id)
    click.echo(f"key {key_id} ended")


@click.group("issuer")
def issuer_command() -> None:
    """External issuers, and which clients may speak for their subjects."""


issuer_command.add_command(list_issuers)


@issuer_command.command("register")
@click.argument("name")
@click.option("--tenant", required=True)
@click.option("--url", required=True, help="The `iss` of its tokens, exactly.")
@click.option("--audience", required=True, help="The `aud` of its tokens that are meant for us.")
@click.option("--key", "keys", multiple=True, required=True, metavar="KID=FILE", help="A pinned key, PEM.")
@with_session
def register_issuer(session: Session, name: str, tenant: str, url: str, audience: str, keys: tuple[str, ...]) -> None:
    """Registers an issuer as NAME: its subjects are NAME:SUB. Its keys are pinned; nothing is fetched.

    `TENANT.` before it is that tenant's alone; an administrator of one tenant only has to begin with it.
    """
    pinned = {}
    for key in keys:
        kid, _, file = key.partition("=")
        if not file:
            raise ConfigurationError("--key is KID=FILE")
        pinned[kid] = load_public_key(Path(file)).der
    Credentials(session).register_issuer(name=name, tenant=tenant, url=url, audience=audience, keys=pinned)
    click.echo(f"issuer {name} registered")


@issuer_command.command("remove")
@click.argument("name")
@with_session
def remove_issuer(session: Session, name: str) -> None:
    """Removes the issuer NAME, and whatever rests on it."""
    Credentials(session).remove_issuer(name)
    click.echo(f"issuer {name} removed")


@issuer_command.command("allow")
@click.argument("client_id")
@click.option("--tenant", required=True)
@click.option("--source", required=True, help="An issuer's name; casemate for access tokens of ours.")
@click.option("--audience", required=True, help="A service, or the next client.")
@click.option("--scope", "scopes", multiple=True, required=True)
@click.option("--refresh", is_flag=True, help="A refresh token may come with it.")
@click.option("--expires", type=click.DateTime(), default=None, help="When it ends, in UTC [default: never].")
@with_session
def allow_exchange(
    session: Session,
    client_id: str,
    tenant: str,
    source: str,
    audience: str,
    scopes: tuple[str, ...],
    refresh: bool,
    expires: datetime | None,
) -> None:
    """Lets CLIENT_ID exchange tokens about subjects of a source."""
    credentials = Credentials(session)
    identifier = credentials.allow_exchange(
        tenant=tenant,
        client_id=client_id,
        source=source,
        audience=audience,
        scopes=scopes,
        refresh=refresh,
        expires_at=None if expires is None else expires.replace(tzinfo=UTC),
    )
    click.echo(identifier)


@issuer_command.command("forbid")
@click.argument("identifier")
@with_session
def forbid_exchange(session: Session, identifier: str) -> None:
    """Takes the exchange grant IDENTIFIER back."""
    Credentials(session).forbid_exchange(identifier)
    click.echo(f"exchange grant {identifier} removed")


@issuer_command.command("allowed")
@of_tenant
@with_json
@with_session
def list_exchanges(session: Session, tenant: str, as_json: bool) -> None:
    """Lists which clients may speak for whose subjects."""
    records = (
        {
            "id": grant.id,
            "tenant": grant.tenant,
            "client_id": grant.client_id,
            "source": grant.source,
            "audience": grant.audience,
            "scopes": list(grant.scopes),
            "refresh": grant.refresh,
            "expires": moment(grant, "expires_at"),
        }
        for grant in Listing(session).exchange_grants(tenant)
    )
    show(records, as_json=as_json)


@click.group("token-key")
def token_key_command() -> None:
    """The keys that sign access tokens; they rotate by themselves."""


@token_key_command.command("list")
@with_json
@with_session
def list_token_keys(session: Session, as_json: bool) -> None:
    """Lists the keys, and when each changes its state next."""
    records = (
        {
            "kid": key.kid,
            "algorithm": key.algorithm,
            "state": key.state,
            "since": moment(key, "since"),
            "until": moment(key, "until"),
        }
        for key in Administration(session).list_token_keys()
    )
    show(records, as_json=as_json)


@token_key_command.command("revoke")
@click.argument("kid")
@with_session
def revoke_token_key(session: Session, kid: str) -> None:
    """Ends the key KID and every token that it signed, within a second; another signs from then on."""
    Administration(session).revoke_token_key(kid)
    click.echo(f"token key {kid} revoked")
