"""What the process is asked to do: serve, or one thing for an operator who stands before the databases."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from casemate.backup import log_file
from casemate.settings import load_settings
from services.datasets.after_restore import after_restore
from services.datasets.app import run
from services.datasets.opening import migrate_databases
from services.datasets.settings import DatasetsSettings
from services.keys.authority_key import rewrapped_authority_key, sealed_authority_key


async def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Does what the arguments ask for; without any, serves until told to end.

    Raises:
        CasemateError: it cannot be done; the message is one line for the operator.
    """
    asked = _parser().parse_args(arguments)
    if asked.command is None:
        await run(environment)
        return
    settings = load_settings(DatasetsSettings, environment, component="datasets")
    if asked.command == "after-restore":
        done = await after_restore(settings, log_file.from_arguments(asked), backup=asked.backup)
        sys.stdout.write(json.dumps(done) + "\n")
    elif asked.command == "seal-authority-key":
        sys.stdout.write(await sealed_authority_key(settings.kek) + "\n")
    elif asked.command == "rewrap-authority-key":
        sys.stdout.write(await rewrapped_authority_key(settings.kek, settings.authority_key) + "\n")
    else:
        await migrate_databases(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.datasets", description="Serves, unless told otherwise.")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("after-restore", help="shred again what was shredded since the backup")
    command.add_argument("--backup", required=True, help="id of the backup that was restored")
    log_file.add_arguments(command)
    commands.add_parser("migrate", help="bring both schemas up to date, and leave")
    commands.add_parser("seal-authority-key", help="print a new key of the rows of authority, for replicas to share")
    commands.add_parser("rewrap-authority-key", help="print that key wrapped anew after a rotation, for its Secret")
    return parser
