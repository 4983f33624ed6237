"""Test vectors made by others, found by CASEMATE_VECTORS.

Unset: the test is skipped and says so. Set, with a file missing: it fails.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def folder() -> Path:
    where = os.environ.get("CASEMATE_VECTORS")
    if not where:
        pytest.skip("CASEMATE_VECTORS is not set: it names the folder with the test vectors of others")
    return Path(where)


def wycheproof(name: str) -> list[dict]:
    """The groups of one file."""
    return json.loads((folder() / "wycheproof" / name).read_text())["testGroups"]


def merkle(kind: str) -> list[dict]:
    """All cases of `inclusion` or `consistency`."""
    return [json.loads(path.read_text()) for path in sorted((folder() / "merkle/testdata" / kind).rglob("*.json"))]
