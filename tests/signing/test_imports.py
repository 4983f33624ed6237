"""The room is pure: it sees neither network nor database."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, sys
import casemate.signing
names = [m.name for m in pkgutil.iter_modules(casemate.signing.__path__, "casemate.signing.")]
for name in names:
    importlib.import_module(name)
print(len(names), sorted({"grpc", "asyncpg", "asyncio", "socket"} & set(sys.modules)))
"""


def test_no_module_of_signing_brings_in_grpc_or_asyncpg():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=True)
    count, _, found = done.stdout.strip().partition(" ")
    assert int(count) >= 10
    assert "grpc" not in found
    assert "asyncpg" not in found
