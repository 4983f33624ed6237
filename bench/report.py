"""How every bench says what it found."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `goal` is text such as `≤ 10`; `met` is None where there is no goal."""

    name: str
    value: float
    unit: str
    goal: str | None = None
    met: bool | None = None


def hardware() -> str:
    """The processor, and how many cores of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def publish(bench: str, results: Sequence[Result], *, as_json: bool) -> None:
    """Prints the results as a table, or as one JSON object. An unmet goal is said, not hidden."""
    if as_json:
        said = {
            "bench": bench,
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": hardware(),
            "results": [asdict(result) for result in results],
        }
        print(json.dumps(said))
        return
    print(f"{bench} on {hardware()}")
    width = max(len(result.name) for result in results)
    for result in results:
        goal = "" if result.goal is None else f"  goal {result.goal}: {'met' if result.met else 'NOT MET'}"
        print(f"  {result.name:<{width}}  {result.value:>10.3g} {result.unit}{goal}")
