"""CPU that the sides of `bench.datasets` take, by process: says what bounds a rate, on a busy machine too."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.report import Result

Side = Callable[[], Awaitable[float | None]]
"""Runs a side once; it may time itself."""

_PLACES: Final = ("client", "service", "PostgreSQL")


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: CPU seconds by place, and the seconds that it took."""

    cpu: tuple[float, ...]
    seconds: float


@dataclass(slots=True)
class Costs:
    """What the runs of each side took. `service` and `postgres` are process ids; the client is this process."""

    service: int
    postgres: int
    _runs: dict[str, list[_Run]] = field(default_factory=dict)

    def counted(self, name: str, side: Side) -> Side:
        """The side, whose runs are counted from now on; its first one warms up, and is not."""
        runs = self._runs[name] = []

        async def run() -> float | None:
            before, begun = self._taken(), time.perf_counter()
            own = await side()
            after, spent = self._taken(), time.perf_counter() - begun
            places = zip(before, after, strict=True)
            cpu = tuple(sum(there.values()) - sum(here.get(pid, 0.0) for pid in there) for here, there in places)
            runs.append(_Run(cpu, spent))
            return own

        return run

    def results(self, name: str, mebibytes: float) -> list[Result]:
        """Medians over the runs of a side, by MiB, and how much of the cores they kept busy."""
        runs = self._runs[name][1:]
        busy = statistics.median(sum(run.cpu) / run.seconds for run in runs) / (os.cpu_count() or 1) * 100
        by_place = zip(_PLACES, zip(*(run.cpu for run in runs), strict=True), strict=True)
        return [
            *(
                Result(f"… CPU of a {name}: {place}", statistics.median(cpu) / mebibytes * 1e3, "ms a MiB")
                for place, cpu in by_place
            ),
            Result(f"… cores that a {name} keeps busy", busy, "%"),
        ]

    def _taken(self) -> tuple[dict[int, float], ...]:
        return {os.getpid(): time.process_time()}, _cpu_seconds([self.service]), _cpu_seconds(_children(self.postgres))


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def _cpu_seconds(pids: list[int]) -> dict[int, float]:
    """By process, of all threads that it has; what ended meanwhile is left out."""
    found: dict[int, float] = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found
