"""What a run says at its end beside its count: what long tests came to, and what was skipped and why.

Both travel with the tests' reports, so that they arrive from every process of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

_NAME = "record"


@pytest.fixture
def tell_record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a line for the record: figures that were counted, never expected ones."""
    return lambda line: request.node.user_properties.append((_NAME, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Writes the lines, and each reason of a skip with how many tests it kept from running."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, line in getattr(report, "user_properties", ()):
                if name == _NAME and report.when == "call":
                    terminalreporter.write_line(f"RECORD {report.nodeid.rpartition('::')[2]}: {line}")
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    for reason, times in sorted(reasons.items()):
        terminalreporter.write_line(f"NOT RUN, {times}: {reason}", yellow=True, bold=True)
