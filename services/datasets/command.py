"""What the process is asked to do: serve, or make restored datasets fit to serve."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from casemate.backup import log_file
from casemate.settings import load_settings
from services.datasets.after_restore import after_restore
from services.datasets.app import run
from services.datasets.settings import DatasetsSettings


async def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Does what the arguments ask for; without any, serves until told to end.

    Raises:
        CasemateError: it cannot be done; the message is one line for the operator.
    """
    parser = argparse.ArgumentParser(prog="python -m services.datasets", description="Serves, unless told otherwise.")
    command = parser.add_subparsers(dest="command").add_parser(
        "after-restore", help="shred again what was shredded since the backup"
    )
    command.add_argument("--backup", required=True, help="id of the backup that was restored")
    log_file.add_arguments(command)
    asked = parser.parse_args(arguments)
    if asked.command:
        settings = load_settings(DatasetsSettings, environment, component="datasets")
        done = await after_restore(settings, log_file.from_arguments(asked), backup=asked.backup)
        sys.stdout.write(json.dumps(done) + "\n")
    else:
        await run(environment)
