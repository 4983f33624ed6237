"""Every row of the attack tables has its tests, and every test named for a row is listed under it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {*(f"E{n}" for n in range(1, 11)), *(f"R{n}" for n in range(1, 9)), *(f"C{n}" for n in range(1, 13))}
ROWS |= {"P1", "P2", "P3", "P4", "P5", "P6", "P7", "D", "Q"}


def _listed() -> set[tuple[str, str]]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#")]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def _tests() -> set[str]:
    found = set()
    for file in HERE.glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(f"{file.name}::{node.name}")
    return found


def test_every_row_has_tests_and_every_test_that_is_listed_exists():
    assert {row for row, _ in _listed()} == ROWS
    assert {test for _, test in _listed()} <= _tests()


def test_every_test_that_is_named_for_a_row_is_listed_under_it():
    named = set()
    for test in _tests():
        row = re.match(r"[^:]+::test_([erc]\d+)_", test)
        if row:
            named.add((row[1].upper(), test))
    assert named <= _listed()
