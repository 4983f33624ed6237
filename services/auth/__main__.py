"""`python -m services.auth`: the only place that reads the environment and the arguments."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from casemate.errors import CasemateError
from casemate.transport.floor import raise_floor

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.auth", description="Serves; or makes the first operator.")
    command = parser.add_subparsers(dest="command").add_parser("bootstrap-operator", help="once per database")
    command.add_argument("--client-id", required=True)
    command.add_argument("--spiffe-id", required=True, help="spiffe://<domain>/t/casemate/<name>")
    arguments = parser.parse_args()
    try:
        raise_floor(os.environ)
        from services.auth.app import bootstrap, run

        if arguments.command:
            made = bootstrap(os.environ, client_id=arguments.client_id, spiffe_id=arguments.spiffe_id)
            asyncio.run(made)
        else:
            asyncio.run(run(os.environ))
    except CasemateError as error:
        sys.exit(f"auth: {error}")
