"""`casemate token`: a token for tools that cannot ask for one themselves."""

from __future__ import annotations

import json

import click

from casemate.cli.connection import with_session
from casemate.client.session import Session


@click.command("token")
@click.argument("audience")
@click.option("--scope", "scopes", multiple=True, help="Scopes asked for [default: all that the client may have].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_session
def token_command(session: Session, audience: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Prints a token for the service AUDIENCE, for grpcurl and its kin.

    That is auth, inference, datasets, or another team's that auth was told of.

    It lives five minutes at most, and is good only on a connection with the
    certificate that asked for it.
    """
    token = session.token(audience, scopes)
    if as_json:
        said = {"access_token": token.text.reveal(), "expires_at": token.expires_at.isoformat()}
        click.echo(json.dumps({**said, "token_id": token.token_id}))
    else:
        click.echo(token.text.reveal())
