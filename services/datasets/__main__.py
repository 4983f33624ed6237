"""`python -m services.datasets`."""

from __future__ import annotations

import asyncio
import os
import sys

from casemate.errors import CasemateError
from casemate.transport.floor import raise_floor

try:
    raise_floor(os.environ)
    from services.datasets.command import main

    asyncio.run(main(sys.argv[1:], os.environ))
except CasemateError as error:
    sys.exit(f"datasets: {error}")
