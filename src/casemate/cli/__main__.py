"""`python -m casemate.cli`: the `casemate` command where no script is installed, as in images."""

from __future__ import annotations

from casemate.cli.main import main

if __name__ == "__main__":
    main()
