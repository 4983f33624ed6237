"""What each layer in front of a method costs: `make bench-gate` (JSON=1 for one JSON object).

Each server runs in a process of its own, on one processor; the load runs in this one, on
the other. All layers of a server are measured in turn, round after round, so that whatever
slows the machine down slows all of them; medians over the rounds are quoted. Where the
load shares its processor with others, the server's own CPU time for a call says more than
calls a second do.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.garbage import floods, in_process
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
    model, _accuracy = digits.train(digits.split()[0])
    (directory / "digits.onnx").write_bytes(model)


def measure(kind: str, work: str, directory: Path, rounds: int) -> dict[str, list[Sample]]:
    """Samples of every layer, one a round."""
    samples: dict[str, list[Sample]] = {name: [] for name in LAYERS}
    with ExitStack() as running:
        layers: dict[str, Layer] = running_server(kind, work, directory, running)
        for layer in layers.values():
            layer.sample(alone=50, crowd=200, callers=CALLERS)
        for turn in range(rounds):
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


def main(rounds: int, *, as_json: bool) -> None:
    """Everything, in a few minutes."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        prepare(directory)
        results += in_process(directory)
        for kind in KINDS:
            for work in WORKS:
                samples = measure(kind, work, directory, rounds)
                results += [*describe(kind, work, samples), *goals(kind, work, samples)]
        results += floods(directory)
    publish("gate", results, as_json=as_json)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS,
        as_json=bool(os.environ.get("JSON")),  # noqa: TID251  # its __main__
    )
