"""`casemate try …`: three things to try against a running `casemate up`."""

from __future__ import annotations

import asyncio
import sys

import click

from casemate.cli.connection import Announcement
from casemate.cli.main import Options
from casemate.cli.state import StateDirectory
from casemate.client.session import Session
from casemate.errors import CasemateError, ConfigurationError
from casemate.transport.certificates import CertificateSource

TENANT = "acme"


@click.group("try")
def try_command() -> None:
    """Three things to try against a running `casemate up`."""


def _session(options: Options, name: str) -> Session:
    state = StateDirectory(options.state)
    said = Announcement.require(state)
    source = CertificateSource(state.client_leaf(TENANT, name))
    return Session(source=source, endpoints=said.endpoints, trust_domain=said.trust_domain)


@try_command.command("predict")
@click.option("--image", type=click.IntRange(0, 359), default=7, show_default=True, help="Which held-out image.")
@click.pass_obj
def predict(options: Options, image: int) -> None:
    """Asks for one held-out image, as a caller with a certificate and a token."""
    from casemate.cli import digits  # noqa: PLC0415  # loads scikit-learn
    from casemate.cli.prediction import ask_as  # noqa: PLC0415
    from casemate.cli.story import MODEL  # noqa: PLC0415

    session = _session(options, "caller")
    _, held_out = digits.split()
    label = ask_as(session, MODEL, held_out.pixels[image : image + 1])[0]
    session.close()
    click.echo(digits.draw(held_out.pixels[image]))
    click.echo(f"prediction: {label}   (the image shows {held_out.digits[image]})")


@try_command.command("steal")
@click.pass_obj
def steal(options: Options) -> None:
    """Replays the caller's valid token over mallory's certificate; exits 0 when it was refused."""
    from casemate.cli.attacks import replay_with_other_certificate  # noqa: PLC0415  # loads scikit-learn

    caller, mallory = _session(options, "caller"), _session(options, "mallory")
    token = caller.token("inference")
    click.echo(f"stolen: a valid token of {caller.source.current.spiffe_id}, good until {token.expires_at:%H:%M:%S}")
    click.echo(f"used by: {mallory.source.current.spiffe_id}, whose certificate is valid too")
    try:
        replay_with_other_certificate(mallory, token)
    except CasemateError as error:
        click.echo(f"refused: {error.code} / {error.reason}")
    else:
        click.echo("ACCEPTED: the token was not bound to its owner's certificate", err=True)
        sys.exit(1)
    finally:
        caller.close()
        mallory.close()


@try_command.command("rows")
@click.option("--limit", type=click.IntRange(1, 100), default=5, show_default=True)
@click.pass_obj
def rows(options: Options, limit: int) -> None:
    """Reads rows of the dataset straight from PostgreSQL, as its superuser would."""
    from casemate.cli.database import connect_as_superuser  # noqa: PLC0415  # loads asyncpg

    state = StateDirectory(options.state)
    Announcement.require(state)

    async def read() -> list[tuple[int, bytes]]:
        async with connect_as_superuser(state, "casemate_datasets") as connection:
            found = await connection.fetch("SELECT ordinal, sealed FROM sealed_rows ORDER BY ordinal LIMIT $1", limit)
            return [(row["ordinal"], row["sealed"]) for row in found]

    found = asyncio.run(read())
    if not found:
        raise ConfigurationError("no rows yet: the first start publishes some")
    click.echo("select ordinal, sealed from sealed_rows;   -- as the database's superuser")
    for ordinal, sealed in found:
        click.echo(f"  {ordinal:>5}  {sealed[:40].hex()}…  ({len(sealed)} bytes)")
    click.echo("Each is one CSV line under AES-256-GCM. The key that opens it is in another database, wrapped by one")
    click.echo("that is in neither.")
