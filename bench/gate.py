"""What each layer in front of a method costs: `make bench-gate` (JSON=1 for one JSON object).

Each server runs in a process of its own, on one processor; the load runs in another, on the
other. Each part runs for a time that is bounded: should one die or hang, the rest is told all
the same, and this says so. All layers of a server are measured in turn, round after round, so
that whatever slows the machine down slows all of them; medians over the rounds are quoted.
Where the load shares its processor with others, the server's own CPU time for a call says more
than calls a second do.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from bench.garbage import floods, in_process
from bench.gate_flood import flooded
from bench.gate_flood_server import TENANTS
from bench.gate_load import Layer, Sample, running_server
from bench.gate_server import LAYERS
from bench.report import Result, publish
from casemate.cli import digits
from casemate.clock import SystemClock
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.local import LocalKeyRing

ROUNDS = 9
ALONE = 250
"""Calls of one caller in a round, for the percentiles."""
CROWD = 800
"""Calls of all callers in a round, for throughput and CPU time."""
CALLERS = 16
ROUNDS_S = 60.0
"""Seconds for the rounds of one server and one work; the quiet machine needs half of them."""
FEWEST = 3
PART_S = 150.0
"""Seconds after which a part is given up."""
ALL_S = 460.0
"""Seconds after which all are: what is left then is said to be not measured."""
KINDS = ("sync", "aio")
WORKS = ("echo", "digits")


def prepare(directory: Path) -> None:
    """Certificates, and the model."""
    ring = LocalKeyRing.create(directory / "kek.json")
    authority = CertificateAuthority.create(
        directory / "ca", trust_domain="casemate.internal", key_encryption=ring, clock=SystemClock()
    )
    write_leaf(authority.issue_service(service="inference"), directory / "server")
    write_leaf(authority.issue_client(tenant="acme", name="bench"), directory / "client")
    for name, tenant in TENANTS.items():
        write_leaf(authority.issue_client(tenant=tenant, name=name), directory / name)
    model, _accuracy = digits.train(digits.split()[0])
    (directory / "digits.onnx").write_bytes(model)


def measure(kind: str, work: str, directory: Path, rounds: int) -> dict[str, list[Sample]]:
    """Samples of every layer, one a round: so many, or as many as there is time for."""
    samples: dict[str, list[Sample]] = {name: [] for name in LAYERS}
    with ExitStack() as running:
        layers: dict[str, Layer] = running_server(kind, work, directory, running)
        for layer in layers.values():
            layer.sample(alone=50, crowd=200, callers=CALLERS)
        ends = time.monotonic() + ROUNDS_S
        for turn in range(rounds):
            if turn >= FEWEST and time.monotonic() >= ends:
                break
            order = list(layers.items())
            for name, layer in order[turn % len(order) :] + order[: turn % len(order)]:
                samples[name].append(layer.sample(alone=ALONE, crowd=CROWD, callers=CALLERS))
    return samples


def describe(kind: str, work: str, samples: dict[str, list[Sample]]) -> list[Result]:
    """Per layer: throughput, percentiles, and what it adds to the layer below it."""
    results = []
    before: list[Sample] | None = None
    for name in LAYERS:
        these = samples[name]
        label = f"{kind} {work} {name}"
        latencies = sorted(value for sample in these for value in sample.alone_us)
        results += [
            Result(f"{label}: throughput", statistics.median(s.calls_per_second for s in these), "calls/s"),
            Result(f"{label}: p50", latencies[len(latencies) // 2], "µs"),
            Result(f"{label}: p99", latencies[len(latencies) * 99 // 100], "µs"),
            Result(f"{label}: CPU", statistics.median(s.cpu_us for s in these), "µs a call"),
        ]
        # The naive layer is a side branch: the gate stands on mutual TLS, not on it.
        if before is not None:
            results += [
                Result(f"{label}: adds", _added(before, these, "p50_us"), "µs p50"),
                Result(f"{label}: adds", _added(before, these, "cpu_us"), "µs CPU a call"),
            ]
        if name != "naive":
            before = these
    return results


def goals(kind: str, work: str, samples: dict[str, list[Sample]]) -> list[Result]:
    """The gate as a whole, over mutual TLS alone and over the naive decode: as predictions are served, and audited."""
    judged = kind == "sync" and work == "digits"
    results = []
    for layer, name in (("quota", "whole gate"), ("audit", "whole gate, every call audited")):
        label = f"{kind} {work} {name}"
        for what, unit in (("cpu_us", "CPU of a call"), ("p50_us", "p50")):
            share = _median_ratio(samples[layer], samples["mtls"], what) - 1
            results.append(
                Result(
                    f"{label}: over mTLS alone",
                    100 * share,
                    f"% of {unit}",
                    "≤ 12" if judged else None,
                    share <= 0.12 if judged else None,
                )
            )
        gain = _median_ratio(samples[layer], samples["naive"], "calls_per_second")
        results.append(
            Result(
                f"{label}: naive decode's throughput",
                gain,
                "times",
                "≥ 1.5" if judged else None,
                gain >= 1.5 if judged else None,
            )
        )
    return results


def _added(before: list[Sample], these: list[Sample], what: str) -> float:
    differences: list[float] = [getattr(b, what) - getattr(a, what) for a, b in zip(before, these, strict=True)]
    return statistics.median(differences)


def _median_ratio(these: list[Sample], others: list[Sample], what: str) -> float:
    ratios: list[float] = [getattr(a, what) / getattr(b, what) for a, b in zip(these, others, strict=True)]
    return statistics.median(ratios)


def layers(kind: str, work: str, directory: Path, rounds: int) -> list[Result]:
    """One server's layers under one work."""
    samples = measure(kind, work, directory, rounds)
    return [*describe(kind, work, samples), *goals(kind, work, samples)]


def part(name: str, directory: Path, rounds: int) -> list[Result]:
    """What one part found."""
    if name == "in process":
        return in_process(directory)
    if name == "garbage":
        return floods(directory)
    if name == "flood":
        return flooded(directory)
    kind, work = name.split()
    return layers(kind, work, directory, rounds)


PARTS = ("in process", *(f"{kind} {work}" for kind in KINDS for work in WORKS), "garbage", "flood")


def run_apart(name: str, directory: Path, rounds: int, within_s: float) -> list[Result]:
    """A part in a process of its own. One that fails is a result as well: a goal that was not met."""
    command = [sys.executable, "-m", "bench.gate", "--part", name, str(directory), str(rounds)]
    with subprocess.Popen(  # noqa: S603  # our own module; in a session of its own, so that its servers end with it
        command, stdout=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).resolve().parent.parent
    ) as process:
        try:
            said, _ = process.communicate(timeout=within_s)
            return [Result(**each) for each in json.loads(said)]
        except subprocess.TimeoutExpired:
            why = f"took longer than {within_s:.0f} s"
        except ValueError:
            why = f"ended with status {process.wait()}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    print(f"gate: {name}: not measured: {why}", file=sys.stderr)
    return [Result(f"{name}: not measured, {why}", 0, "results", "measured", met=False)]


def main(rounds: int, *, as_json: bool) -> None:
    """Everything, in at most eight minutes; on a quiet machine all of it is measured in that time."""
    results: list[Result] = []
    ends = time.monotonic() + ALL_S
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        prepare(directory)
        for name in PARTS:
            print(f"gate: {name}", file=sys.stderr, flush=True)
            results += run_apart(name, directory, rounds, min(PART_S, max(1.0, ends - time.monotonic())))
    publish("gate", results, as_json=as_json)


if __name__ == "__main__" and sys.argv[1:2] == ["--part"]:
    found = part(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps([asdict(result) for result in found]))
elif __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS,
        as_json=bool(os.environ.get("JSON")),  # noqa: TID251  # its __main__
    )
