"""Every row of the tamper and failure lists has its tests, and every test that names a row of E is listed under it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
GROUPS = (("E", 27), ("D", 17), ("U", 22), ("S", 15), ("K", 12), ("A", 9))
ROWS = {f"{group}{number}" for group, most in GROUPS for number in range(1, most + 1)}


def _listed() -> set[tuple[str, str]]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#")]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def _tests(file: Path) -> dict[str, str]:
    """The tests of a file by name, with their docstrings."""
    return {
        f"{file.relative_to(TESTS)}::{node.name}": ast.get_docstring(node) or ""
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_row_has_tests_and_every_test_that_is_listed_exists():
    listed = _listed()
    assert {row for row, _ in listed} == ROWS
    files = {TESTS / test.partition("::")[0] for _, test in listed}
    assert {test for _, test in listed} <= {test for file in files for test in _tests(file)}


def test_every_test_that_names_a_row_is_listed_under_it():
    named = {
        (row, test)
        for file in HERE.glob("test_*.py")
        for test, text in _tests(file).items()
        for row in re.findall(r"\bE\d+\b", text)
    }
    assert named
    assert named <= _listed(), sorted(named - _listed())
