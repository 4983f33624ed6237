"""`python -m services.inference`: the only place that reads the environment."""

from __future__ import annotations

import os
import sys

from casemate.errors import CasemateError
from casemate.transport.floor import raise_floor

if __name__ == "__main__":
    try:
        raise_floor(os.environ)
        from services.inference.processes import main

        main(os.environ, sys.argv[1:])
    except CasemateError as error:
        sys.exit(f"inference: {error}")
