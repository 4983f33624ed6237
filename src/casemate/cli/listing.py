"""The lists of what auth holds, tenants to releases and revocations: one line a record, or one object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import click

from casemate.auth.v1 import admin_service_pb2, trust_pb2
from casemate.cli.connection import with_session
from casemate.cli.plain_text import plain
from casemate.client.admin import AUTHENTICATIONS, REVOCATIONS, ROLES
from casemate.client.listing import Listing
from casemate.client.session import Session
from casemate.client.timestamps import parse_timestamp

if TYPE_CHECKING:
    from google.protobuf.message import Message

HOUSE_TENANT = "casemate"

_AUTHENTICATIONS = {number: name for name, number in AUTHENTICATIONS.items()}
_REVOCATIONS = {number: name for name, number in REVOCATIONS.items()}  # all but keys, which `token-key` revokes
_ROLES = {number: name for name, number in ROLES.items()}

with_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
of_tenant = click.option("--tenant", default="", help="Whose [default: every tenant that you may act on].")


def show(records: Iterable[Mapping[str, object]], *, as_json: bool) -> None:
    """Prints records as they come."""
    for record in records:
        click.echo(json.dumps(record) if as_json else "  ".join(_word(value) for value in record.values()).rstrip())


def moment(message: Message, field: str) -> str | None:
    """A timestamp in UTC; None if it is not set: of what does not end, JSON says null."""
    return parse_timestamp(getattr(message, field), field).isoformat() if message.HasField(field) else None


@click.command("list")
@with_json
@with_session
def list_tenants(session: Session, as_json: bool) -> None:
    """Lists the tenants."""
    found = Listing(session).tenants()
    show(({"tenant": one.name, "created": moment(one, "created_at")} for one in found), as_json=as_json)


@click.command("list")
@of_tenant
@with_json
@with_session
def list_clients(session: Session, tenant: str, as_json: bool) -> None:
    """Lists who may ask for tokens, and who may no more."""
    show(map(_client, Listing(session).clients(tenant)), as_json=as_json)


@click.command("show")
@click.argument("client_id")
@with_json
@with_session
def show_client(session: Session, client_id: str, as_json: bool) -> None:
    """Describes CLIENT_ID: what its tokens may be for, and what it proves itself by."""
    listing = Listing(session)
    found = listing.client(client_id)
    proofs = {
        "secrets": [{"id": one.id, "created": moment(one, "created_at")} for one in listing.secrets(client_id)],
        "keys": [{"key_id": one.key_id, "created": moment(one, "created_at")} for one in listing.keys(client_id)],
    }
    said = {**_client(found), **proofs}
    if as_json:
        click.echo(json.dumps(said))
        return
    for name, value in said.items():
        click.echo(f"{name}: {_word(value)}")


@click.command("list")
@with_json
@with_session
def list_operators(session: Session, as_json: bool) -> None:
    """Lists the clients of the house tenant that administer."""
    clients = Listing(session).clients(HOUSE_TENANT)
    show((_client(one) for one in clients if "admin" in one.client.scopes), as_json=as_json)


@click.command("list")
@click.argument("client_id")
@with_json
@with_session
def list_secrets(session: Session, client_id: str, as_json: bool) -> None:
    """Lists the live secrets of CLIENT_ID: since when, never what."""
    found = Listing(session).secrets(client_id)
    show(({"id": one.id, "created": moment(one, "created_at")} for one in found), as_json=as_json)


@click.command("list")
@click.argument("client_id")
@with_json
@with_session
def list_keys(session: Session, client_id: str, as_json: bool) -> None:
    """Lists the keys of CLIENT_ID."""
    found = Listing(session).keys(client_id)
    show(({"key_id": one.key_id, "created": moment(one, "created_at")} for one in found), as_json=as_json)


@click.command("list")
@of_tenant
@with_json
@with_session
def list_grants(session: Session, tenant: str, as_json: bool) -> None:
    """Lists the live grants on tenants' resources."""
    show(map(_grant, Listing(session).grants(tenant)), as_json=as_json)


@click.command("list")
@of_tenant
@with_json
@with_session
def list_signers(session: Session, tenant: str, as_json: bool) -> None:
    """Lists whose signatures count, until when, and whose no more."""
    show(map(_signer, Listing(session).signers(tenant)), as_json=as_json)


@click.command("list")
@of_tenant
@with_json
@with_session
def list_issuers(session: Session, tenant: str, as_json: bool) -> None:
    """Lists the external issuers."""
    found = Listing(session).issuers(tenant)
    records = (
        {
            "name": one.name,
            "tenant": one.tenant,
            "url": one.url,
            "audience": one.audience,
            "kids": [key.kid for key in one.keys],
        }
        for one in found
    )
    show(records, as_json=as_json)


@click.group("release")
def release_command() -> None:
    """Which versions of models may be served."""


@release_command.command("list")
@of_tenant
@with_json
@with_session
def list_releases(session: Session, tenant: str, as_json: bool) -> None:
    """Lists the releases: of each model the newest version, and what its labels name."""
    whole: Callable[[trust_pb2.Release], Mapping[str, object]] = _release_with_versions if as_json else _release
    show(map(whole, Listing(session).releases(tenant)), as_json=as_json)


@click.group("revocation")
def revocation_command() -> None:
    """What was revoked; `casemate revoke` revokes."""


@revocation_command.command("list")
@of_tenant
@with_json
@with_session
def list_revocations(session: Session, tenant: str, as_json: bool) -> None:
    """Lists what is revoked and could still matter: of a tenant its clients, subjects and SPIFFE IDs."""
    show(map(_revocation, Listing(session).revocations(tenant)), as_json=as_json)


def _client(found: admin_service_pb2.ClientStatus) -> dict[str, object]:
    client = found.client
    return {
        "client_id": client.client_id,
        "tenant": client.tenant,
        "spiffe_id": client.spiffe_id,
        "state": "enabled" if found.enabled else "disabled",
        "authentication": _AUTHENTICATIONS[client.authentication],
        "audiences": list(client.audiences),
        "scopes": list(client.scopes),
        "created": moment(found, "created_at"),
    }


def _grant(grant: trust_pb2.Grant) -> dict[str, object]:
    return {
        "id": grant.id,
        "tenant": grant.tenant,
        "effect": "deny" if grant.effect == trust_pb2.EFFECT_DENY else "allow",
        "caller": grant.caller,
        "verb": grant.verb,
        "resource": grant.resource,
        "expires": moment(grant, "expires_at"),
    }


def _revocation(revocation: trust_pb2.Revocation) -> dict[str, object]:
    return {
        "id": revocation.id,
        "kind": _REVOCATIONS.get(revocation.kind, "key"),
        "value": revocation.value,
        "issued_until": moment(revocation, "not_before"),
        "expires": moment(revocation, "expires_at"),
    }


def _signer(signer: trust_pb2.Signer) -> dict[str, object]:
    return {
        "key_id": signer.key_id,
        "tenant": signer.tenant,
        "role": _ROLES[signer.role],
        "algorithm": signer.algorithm,
        "valid_from": moment(signer, "valid_from"),
        "valid_until": moment(signer, "valid_until"),
        "compromised_since": moment(signer, "compromised_since"),
    }


def _release(release: trust_pb2.Release) -> dict[str, object]:
    labels = [f"{name}={number}" for name, number in sorted(release.labels.items())]
    latest = max((version.number for version in release.versions), default=0)
    return {"tenant": release.tenant, "model": release.model, "latest": latest, "labels": labels}


def _release_with_versions(release: trust_pb2.Release) -> dict[str, object]:
    versions = [
        {
            "number": version.number,
            "manifest_sha256": version.manifest_sha256.hex(),
            "signer_key_id": version.signer_key_id,
            "recorded": moment(version, "recorded_at"),
        }
        for version in release.versions
    ]
    labels = dict(sorted(release.labels.items()))
    return {"tenant": release.tenant, "model": release.model, "labels": labels, "versions": versions}


def _word(value: object) -> str:
    """One column: never empty, so that columns can be counted."""
    if isinstance(value, list):
        return ",".join(map(_word, value)) or "-"
    if isinstance(value, dict):
        return " ".join(map(_word, value.values()))
    return "-" if value is None else plain(str(value)) or "-"
