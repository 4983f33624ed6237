"""Every row of the tables of attacks has its test, and every test here its row."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MANIFEST = tomllib.loads((HERE / "rows.toml").read_text())

TABLES = {
    "auth": {"T": 11, "F": 12, "C": 14, "A": 10},
    "reliability": {"A": 19, "B": 22, "F": 16},
}
"""How many rows each group of each table has."""


def wanted_rows() -> set[str]:
    return {
        f"{table} {group}{number}" + ("c" if (table, group) == ("reliability", "F") else "")
        for table, groups in TABLES.items()
        for group, rows in groups.items()
        for number in range(1, rows + 1)
    }


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def path_of(name: str) -> Path:
    file = name.partition("::")[0]
    return ROOT / file if "/" in file else HERE / file


def test_every_row_is_there_once_with_a_test_or_with_the_reason_why_not():
    done, undone = set(MANIFEST["rows"]), set(MANIFEST["undone"])
    assert done | undone == wanted_rows()
    assert not done & undone
    assert set(MANIFEST["partly"]) <= done
    assert all(reason for part in ("partly", "undone") for reason in MANIFEST[part].values())
    assert all(MANIFEST["rows"].values())


def test_every_test_that_a_row_names_exists():
    named = {name for names in MANIFEST["rows"].values() for name in names}
    missing = {name for name in named if name.partition("::")[2] not in names_in(path_of(name))}
    assert missing == set()


def test_every_test_of_this_folder_is_named_by_a_row():
    named = {name for names in MANIFEST["rows"].values() for name in names}
    here = {
        f"{path.name}::{name}" for path in HERE.glob("test_*.py") if path != Path(__file__) for name in names_in(path)
    }
    assert here - named == set()
