"""Every row of the attack table and every lesson of others has its tests, and every test named for a row is listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
ROWS = {*(f"D{n}" for n in range(1, 25)), *(f"L{n}" for n in range(1, 15))}


def _listed() -> set[tuple[str, str]]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#")]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def _tests_of(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text()).body if file.is_file() else []
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_has_tests_and_every_test_that_is_listed_exists() -> None:
    listed = _listed()
    assert {row for row, _ in listed} == ROWS
    missing = set()
    for _, test in listed:
        file, _, name = test.partition("::")
        if name not in _tests_of((TESTS if "/" in file else HERE) / file):
            missing.add(test)
    assert not missing


def test_every_test_that_is_named_for_a_row_is_listed_under_it() -> None:
    named = set()
    for file in HERE.glob("test_*.py"):
        for name in _tests_of(file):
            found = re.match(r"test_d(\d+)(?:_(and|to)_d(\d+))?_", name)
            if found is None:
                continue
            first, last = int(found[1]), int(found[3] or found[1])
            rows = (first, last) if found[2] == "and" else range(first, last + 1)
            named |= {(f"D{row}", f"{file.name}::{name}") for row in rows}
    text = (
        "D5",
        "test_hostile_requests.py::test_d1_to_d6_a_request_that_lies_is_refused_on_the_wire_and_the_model_never_runs",
    )
    assert named - {text} <= _listed()  # its model takes no text
