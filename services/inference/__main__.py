"""`python -m services.inference`: the only place that reads the environment."""

from __future__ import annotations

import os
import sys

from casemate.errors import CasemateError
from casemate.transport.floor import raise_floor

if __name__ == "__main__":
    try:
        raise_floor(os.environ)
        # Since 1.29 onnxruntime tells Microsoft about each model that it loads, unless told not to before its import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        from services.inference.processes import main

        main(os.environ, sys.argv[1:])
    except CasemateError as error:
        sys.exit(f"inference: {error}")
