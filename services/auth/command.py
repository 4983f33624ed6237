"""What the process is asked to do: serve, or one thing for an operator who stands before the database."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from casemate.backup import log_file
from casemate.settings import load_settings
from services.auth.after_restore import after_restore
from services.auth.app import run
from services.auth.opening import migrate_database
from services.auth.operators import bootstrap
from services.auth.settings import AuthSettings
from services.keys.authority_key import rewrapped_authority_key, sealed_authority_key


async def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Does what the arguments ask for; without any, serves until told to end.

    Raises:
        CasemateError: it cannot be done; the message is one line for the operator.
    """
    asked = _parser().parse_args(arguments)
    if asked.command is None:
        await run(environment)
    elif asked.command == "bootstrap-operator":
        await bootstrap(
            environment,
            client_id=asked.client_id,
            spiffe_id=asked.spiffe_id,
            replace=asked.replace,
            reason=asked.reason,
        )
    else:
        settings = load_settings(AuthSettings, environment, component="auth")
        if asked.command == "after-restore":
            sys.stdout.write(json.dumps(await after_restore(settings, log_file.from_arguments(asked))) + "\n")
        elif asked.command == "seal-authority-key":
            sys.stdout.write(await sealed_authority_key(settings.kek) + "\n")
        elif asked.command == "rewrap-authority-key":
            sys.stdout.write(await rewrapped_authority_key(settings.kek, settings.authority_key) + "\n")
        else:
            await migrate_database(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.auth", description="Serves, unless told otherwise.")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("bootstrap-operator", help="make the first operator of this database")
    command.add_argument("--client-id", required=True, help="its identifier")
    command.add_argument("--spiffe-id", required=True, help="spiffe://<domain>/t/casemate/<name>")
    command.add_argument("--replace", action="store_true", help="in place of the operator made last, which is disabled")
    command.add_argument("--reason", default="", help="why it is replaced; the transparency log is told")
    log_file.add_arguments(commands.add_parser("after-restore", help="take away what was taken away since the backup"))
    commands.add_parser("migrate", help="bring the schema up to date, and leave")
    commands.add_parser("seal-authority-key", help="print a new key of the rows of authority, for replicas to share")
    commands.add_parser("rewrap-authority-key", help="print that key wrapped anew after a rotation, for its Secret")
    return parser
