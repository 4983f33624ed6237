"""The how-to for users of the library does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "seal-your-own-data.md"


def test_code_of_the_how_to_runs_as_it_stands(tmp_path: Path) -> None:
    """In a process of its own, as a reader runs it. Its only word is the refusal that it means to show."""
    code = HOW_TO.read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "row 0 in batch 0 of acme/people version 1 does not authenticate\n"


def test_importing_the_package_imports_none_of_its_modules() -> None:
    """So that whoever seals files needs neither AWS nor a token's library."""
    code = "import sys, casemate.sealing; print([name for name in sys.modules if name.startswith('casemate.sealing.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
