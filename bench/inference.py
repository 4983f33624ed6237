"""Inference against its peers, and against the least that could do the same: `make bench-inference` (JSON=1).

Ours has everything on: mutual TLS 1.3, bound tokens, policy, quota, audit, metrics. MLServer, KServe and
PyTriton have nothing on, and serve the same ONNX files in plaintext. A bare grpcio server does the same
parsing, run and reply over the same TLS as ours, and nothing else.

Servers run in processes of their own, all on one core; the load runs on another.
They are measured in turn, round after round, so that whatever slows the machine
down slows all of them; what is quoted are medians over the rounds, and ratios
are taken within a round. Calls are made by h2load where it is installed, with a
client certificate, and by a Python client otherwise. CPU time is the server's own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bench import inference_models
from bench.h2load import H2load
from bench.inference_peers import NAMES, NoPeer, Peer
from bench.inference_server import METHOD, TRUST_DOMAIN
from bench.report import Result, publish
from casemate.clock import SystemClock
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.local import LocalKeyRing
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE
from services.inference.batch_jobs import Terms
from services.inference.instance import OnnxInstance
from services.inference.preparation import Preparation
from services.inference.statistics import Statistics

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 7
CALLERS = 32
SMALL_CALLS = {1: 500, CALLERS: 1500}
NET_CALLS = 600
PEER_NET_CALLS = {1: 150, CALLERS: 400}
LARGE_CALLS = 24
DEADLINE_S = 0.25
Round: TypeAlias = Mapping[str, tuple[float, float]]
"""Calls a second and CPU microseconds a call, by server."""
OVERLOAD = 3
OPEN_S = 4.0


def place(core: int) -> int:
    """The processor that stands for the n-th core of the bench."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[core % len(cores)]


class Process:
    """A server, or the load: a line in, a line out."""

    def __init__(self, module: str, *arguments: str, core: int, running: ExitStack) -> None:
        self._process = running.enter_context(
            subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, CIPHER_SUITES_VARIABLE: CIPHER_SUITES},  # noqa: TID251  # its own, and the TLS floor
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
        os.sched_setaffinity(self._process.pid, {place(core)})
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._in, self._out = self._process.stdin, self._process.stdout
        running.callback(self._in.close)

    def read(self) -> dict[str, Any]:
        """The next line."""
        line = self._out.readline()
        if not line:
            raise RuntimeError("a process of the bench has ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, question: str) -> dict[str, Any]:
        """The answer to a question."""
        self._in.write(question + "\n")
        self._in.flush()
        return self.read()


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Says of a peer that cannot be compared with, why."""
    try:
        yield
    except NoPeer as error:
        print(f"{name} is not among the peers: {error}", file=sys.stderr)


class Bench:
    """The servers, the load, and the requests."""

    def __init__(self, directory: Path, running: ExitStack) -> None:
        self._directory = directory
        self._h2load = H2load(directory) if H2load.available() else None
        self._python = Process("bench.inference_load", str(directory), core=1, running=running)
        self.servers = {
            mode: Process("bench.inference_server", mode, str(directory), core=0, running=running)
            for mode in ("ours", "bare", "echo")
        }
        self._said = {mode: server.read() for mode, server in self.servers.items()}
        self.peers: dict[str, Peer] = {}
        for name in NAMES if self._h2load is not None else ():
            with _telling(name):
                self.peers[name] = Peer(name, directory / "models", directory, core=place(0), running=running)
        started, self.peers = self.peers, {}
        for name, peer in started.items():
            with _telling(name):
                peer.require_answers()
                self.peers[name] = peer

    def rate(self, mode: str, payload: str, *, at_once: int, calls: int) -> tuple[float, float]:
        """Calls a second, and the server's CPU microseconds for each."""
        before = self._cpu(mode)
        if self._h2load is None:
            said = self.closed(mode, payload, at_once=at_once, calls=calls)
            rate = said["ok"] / said["seconds"]
        else:
            peer = self.peers.get(mode)
            rate = self._h2load.rate(
                port=peer.port if peer is not None else self._said[mode]["port"],
                token=self._token(mode),
                method=METHOD,
                payload=self._directory / payload,
                at_once=at_once,
                calls=calls,
                secure=peer is None,
                core=place(1),
            )
        return rate, (self._cpu(mode) - before) / calls * 1e6

    def _cpu(self, mode: str) -> float:
        peer = self.peers.get(mode)
        return peer.cpu_seconds() if peer is not None else float(self.servers[mode].ask("cpu")["cpu"])

    def closed(self, mode: str, payload: str, *, at_once: int, calls: int) -> dict[str, Any]:
        """A closed load by the Python client, with its latencies."""
        return self._order(mode, payload, kind="closed", at_once=at_once, calls=calls)

    def opened(self, mode: str, payload: str, *, rate: float) -> dict[str, Any]:
        """An open load by the Python client."""
        return self._order(mode, payload, kind="open", rate=rate, seconds=OPEN_S, deadline=DEADLINE_S)

    def counts(self, model: str) -> dict[str, Any]:
        """What our server counted for a model."""
        return self.servers["ours"].ask(model)

    def _order(self, mode: str, payload: str, **order: object) -> dict[str, Any]:
        target = {"port": self._said[mode]["port"], "token": self._token(mode), "method": METHOD}
        return self._python.ask(json.dumps({**target, "payload": str(self._directory / payload), **order}))

    def _token(self, mode: str) -> str:
        return str(self.servers[mode].ask("token")["token"]) if mode == "ours" else ""


def measure() -> list[Result]:
    """All figures, in some minutes."""
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch, ExitStack() as running:
        directory = Path(scratch)
        _prepare(directory)
        bench = Bench(directory, running)
        return [
            *_small(bench, "small", 1),
            *_small(bench, "small", CALLERS),
            *_small(bench, "digits", CALLERS),
            *_net(bench, 1),
            *_net(bench, CALLERS),
            *_batching(bench),
            *_idle(bench),
            *_overload(bench),
            *_large(bench),
        ]


def _prepare(directory: Path) -> None:
    ring = LocalKeyRing.create(directory / "kek.json")
    authority = CertificateAuthority.create(
        directory / "ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=SystemClock()
    )
    write_leaf(authority.issue_service(service="inference"), directory / "server")
    write_leaf(authority.issue_client(tenant="acme", name="bench"), directory / "client")
    random = np.random.default_rng(4)
    shapes = {
        "small": (1, 4),
        "digits": (1, 64),
        "net": (1, *inference_models.IMAGE),
        "batched": (1, *inference_models.IMAGE),
        "echo": (inference_models.ECHO_FLOATS,),
    }
    for name, shape in shapes.items():
        tensor = random.standard_normal(shape, dtype=np.float32)
        request = wire.ModelInferRequest(model_name=name, raw_input_contents=[tensor.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=shape)
        (directory / name).write_bytes(request.SerializeToString())
    models = directory / "models"
    models.mkdir()
    for name in ("small", "digits", "net"):
        (models / f"{name}.onnx").write_bytes(getattr(inference_models, name)())
    (models / "small.request").write_bytes((directory / "small").read_bytes())


def _small(bench: Bench, model: str, callers: int) -> list[Result]:
    """The whole service against the bare server and the peers, on a model that costs nothing."""
    rounds = _rounds(bench, ("ours", "bare", *bench.peers), model, callers, SMALL_CALLS[callers])
    name = f"{model} model, {callers} caller{'s' * (callers > 1)}"
    ratio = statistics.median(each["ours"][0] / each["bare"][0] for each in rounds)
    return [
        *_shown(name, rounds),
        Result(f"{name}: ours to bare", ratio, "×", "≥ 0.85", ratio >= 0.85),
        *_to_best_peer(bench, name, rounds, 2.0),
    ]


def _net(bench: Bench, callers: int) -> list[Result]:
    """The 25 MB net as a publisher would have it served, batched, against the peers as they come: PyTriton batches."""
    modes = ("ours", "bare", *bench.peers)
    rounds = _rounds(bench, modes, "net", callers, PEER_NET_CALLS[callers], ours="batched")
    name = f"net, {callers} caller{'s' * (callers > 1)}"
    return [*_shown(name, rounds), *_to_best_peer(bench, name, rounds, 1.0)]


def _rounds(bench: Bench, modes: Sequence[str], model: str, callers: int, calls: int, *, ours: str = "") -> list[Round]:
    """Every server in turn, round after round, each time in another order; `ours`: our name of the model."""
    ours = ours or model
    asked = dict.fromkeys(modes, model) | {"ours": ours}
    for mode in modes:
        bench.rate(mode, asked[mode], at_once=callers, calls=calls // 2)
    before = bench.counts(ours)["success"]
    rounds: list[Round] = []
    for turn in range(ROUNDS):
        order = [*modes[turn % len(modes) :], *modes[: turn % len(modes)]]
        rounds.append({mode: bench.rate(mode, asked[mode], at_once=callers, calls=calls) for mode in order})
    if bench.counts(ours)["success"] - before < ROUNDS * calls:
        raise RuntimeError("not every call was answered well")
    return rounds


def _shown(name: str, rounds: Sequence[Round]) -> list[Result]:
    return [
        Result(f"{name}: {mode}{said}", statistics.median(each[mode][place] for each in rounds), unit)
        for mode in rounds[0]
        for place, said, unit in ((0, "", "calls/s"), (1, ", CPU", "µs a call"))
    ]


def _to_best_peer(bench: Bench, name: str, rounds: Sequence[Round], goal: float) -> list[Result]:
    """The ratio to the peer that is the best over all rounds."""
    if not bench.peers:
        return []
    best = max(bench.peers, key=lambda peer: statistics.median(each[peer][0] for each in rounds))
    ratio = statistics.median(each["ours"][0] / each[best][0] for each in rounds)
    return [Result(f"{name}: ours to the best peer, {best}", ratio, "×", f"≥ {goal:g}", ratio >= goal)]


def _batching(bench: Bench) -> list[Result]:
    """The net with and without batching, by our server."""
    rounds = []
    for model in ("net", "batched"):
        bench.rate("ours", model, at_once=CALLERS, calls=NET_CALLS // 2)
    before = bench.counts("batched")
    for turn in range(ROUNDS):
        order = ("net", "batched") if turn % 2 else ("batched", "net")
        rounds.append({model: bench.rate("ours", model, at_once=CALLERS, calls=NET_CALLS) for model in order})
    after = bench.counts("batched")
    answered = after["success"] - before["success"]
    if answered < ROUNDS * NET_CALLS:
        raise RuntimeError("not every call was answered well")
    ratio = statistics.median(each["batched"][0] / each["net"][0] for each in rounds)
    return [
        Result("net, 32 callers: unbatched", statistics.median(each["net"][0] for each in rounds), "calls/s"),
        Result("net, 32 callers: batched", statistics.median(each["batched"][0] for each in rounds), "calls/s"),
        Result("net, 32 callers: rows a run", answered / (after["executions"] - before["executions"]), "rows"),
        Result("net, 32 callers: batched to unbatched", ratio, "×", "≥ 3", ratio >= 3),
    ]


def _idle(bench: Bench) -> list[Result]:
    """What the batcher adds to a lone call: over the wire, and in process against the model itself."""
    pairs = []
    for turn in range(ROUNDS):
        order = ("net", "batched") if turn % 2 else ("batched", "net")
        medians = {
            model: statistics.median(bench.closed("ours", model, at_once=1, calls=200)["latencies_ms"])
            for model in order
        }
        pairs.append(medians)
    added = [(each["batched"] - each["net"]) * 1000 for each in pairs]
    noise = statistics.quantiles([each["net"] * 1000 for each in pairs], n=4)
    spread = noise[2] - noise[0]
    median = statistics.median(added)
    return [
        Result("net, idle: p50 of a lone call", statistics.median(each["net"] for each in pairs), "ms"),
        Result(
            "net, idle: added by batching",
            median,
            "µs a call",
            f"0 within noise (± {spread:.0f} µs)",
            abs(median) <= spread,
        ),
        Result("batcher, idle, in process", _queue_us(), "µs a call"),
    ]


def _queue_us() -> float:
    """Microseconds that an idle batcher adds to a run, in process, on the small model."""
    instance, turns = OnnxInstance(inference_models.small()), 4000
    batcher = Preparation(instances=1)(instance, {}).batcher
    inputs, terms, counts = {"x": np.zeros((1, 4), np.float32)}, Terms("acme", "bench", 1e12), Statistics()
    added = []
    for _ in range(turns):
        first = time.perf_counter_ns()
        instance.run(inputs)
        second = time.perf_counter_ns()
        batcher.run(inputs, rows=1, terms=terms, statistics=counts)
        added.append((time.perf_counter_ns() - second) - (second - first))
    return statistics.median(added) / 1000


def _overload(bench: Bench) -> list[Result]:
    """The unbatched net at three times what it can do, each call with a deadline."""
    peaks, floods, late = [], [], []
    shed: dict[str, int] = {}
    for _ in range(3):
        said = bench.closed("ours", "net", at_once=CALLERS, calls=NET_CALLS)
        peak = said["ok"] / said["seconds"]
        flood = bench.opened("ours", "net", rate=OVERLOAD * peak)
        peaks.append(peak)
        floods.append(flood["ok"] / flood["seconds"] / peak)
        late.append(statistics.quantiles(flood["latencies_ms"] or [1e9, 1e9], n=100)[98])
        for code, count in flood["codes"].items():
            shed[code] = shed.get(code, 0) + count
    goodput, p99 = statistics.median(floods), statistics.median(late)
    return [
        Result("net, peak", statistics.median(peaks), "calls/s"),
        Result("net, 3 × overload: goodput to peak", goodput, "×", "≥ 0.9", goodput >= 0.9),
        Result(
            "net, 3 × overload: p99 of the admitted",
            p99,
            "ms",
            f"≤ {DEADLINE_S * 1000:.0f}",
            p99 <= DEADLINE_S * 1000,
        ),
        *(Result(f"net, 3 × overload: {code}", count, "calls") for code, count in sorted(shed.items())),
    ]


def _large(bench: Bench) -> list[Result]:
    """16 MiB there and back, against a server that gives the same bytes back unread."""
    rounds: list[Round] = []
    before = bench.counts("echo")["success"]
    for mode in ("ours", "echo"):
        bench.rate(mode, "echo", at_once=2, calls=4)
    for turn in range(ROUNDS):
        order = ("ours", "echo") if turn % 2 else ("echo", "ours")
        rounds.append({mode: bench.rate(mode, "echo", at_once=2, calls=LARGE_CALLS) for mode in order})
    if bench.counts("echo")["success"] - before < ROUNDS * LARGE_CALLS:
        raise RuntimeError("not every call was answered well")
    ratio = statistics.median(each["ours"][0] / each["echo"][0] for each in rounds)
    return [
        *_shown("16 MiB tensor", rounds),
        Result("16 MiB tensor: ours to a bare echo", ratio, "×", "≥ 0.8", ratio >= 0.8),
    ]


if __name__ == "__main__":
    publish("inference", measure(), as_json=bool(os.environ.get("JSON")))  # noqa: TID251  # its __main__
