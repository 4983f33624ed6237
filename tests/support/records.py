"""What a long test came to, in a line or two at the end of the run: `make test-long` keeps them in docs/records/."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def tell_record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a line for the record: figures that were counted, never expected ones."""
    lines = request.config.stash.setdefault(_LINES, [])
    return lambda line: lines.append(f"{request.node.name}: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Writes the lines."""
    for line in terminalreporter.config.stash.get(_LINES, []):
        terminalreporter.write_line(f"RECORD {line}")
