"""`casemate revoke …`: ends what somebody holds, everywhere within a second."""

from __future__ import annotations

import click

from casemate.cli.connection import with_session
from casemate.client.admin import REVOCATIONS, Administration
from casemate.client.session import Session


@click.command("revoke")
@click.argument("kind", type=click.Choice(list(REVOCATIONS)))
@click.argument("value")
@with_session
def revoke_command(session: Session, kind: str, value: str) -> None:
    """Revokes VALUE: a token's jti, a session's sid, a client, a subject, a SPIFFE ID, or a certificate's thumbprint.

    A subject is a client's identifier, or ISSUER:SUB of an external issuer. A thumbprint is
    the base64url SHA-256 of the certificate, as `x5t#S256` has it; one that begins with a
    dash comes last, after `--`. A SPIFFE ID is revoked for good.
    """
    click.echo(f"revoked: {Administration(session).revoke(kind, value)}")
