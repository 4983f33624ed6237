"""`python -m services.auth`: the only place that reads the environment and the arguments."""

from __future__ import annotations

import asyncio
import os
import sys

from casemate.errors import CasemateError
from casemate.transport.floor import raise_floor

if __name__ == "__main__":
    try:
        raise_floor(os.environ)
        from services.auth.command import main

        asyncio.run(main(sys.argv[1:], os.environ))
    except CasemateError as error:
        sys.exit(f"auth: {error}")
