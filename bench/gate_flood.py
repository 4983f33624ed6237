"""What one tenant's flood does to another tenant's calls: a table of `make bench-gate`.

The flood is of valid calls: every caller calls again as soon as it is answered, so the server has as much
to do as it can. It is as large as its tenant's limits allow, or several times that.
The other tenant makes one call after the other. Servers take turns, each without and with both floods.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import grpc

from bench.gate_flood_server import METHOD
from bench.gate_load import payload_of, pinned
from bench.gate_server import TRUST_DOMAIN
from bench.report import Result
from casemate.transport.certificates import load_pair
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

WAYS = ("at once", "threads", "grpcio", "aio", "grpc.aio")
GATED = ("at once", "threads", "aio")
FLOODS = {"alone": (0, 0), "flooded": (1, 60), "beyond": (4, 80)}
"""Connections of the flood, and calls under way on each: a caller may have 64, and a tenant beside another one 64."""
TURNS = 4
CALLS = 200
"""Calls of the other tenant in a turn, or as many as there is time for."""
TURN_S = 0.8
SETTLE_S = 0.1
ALL_S = 45.0
"""Seconds for all turns; the quiet machine needs less."""
FEWEST = 2
GOAL = 2.0
TIMEOUT_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent


class _Process:
    """A process that is told lines, and answers in lines."""

    def __init__(self, module: str, directory: Path, running: ExitStack) -> None:
        process = running.enter_context(
            subprocess.Popen(  # noqa: S603  # our own modules, by our own interpreter
                [sys.executable, "-m", module, str(directory)],
                env={**os.environ, CIPHER_SUITES_VARIABLE: CIPHER_SUITES},  # noqa: TID251  # its own, and the floor
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_ROOT,
            )
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        running.callback(process.stdin.close)
        self._questions: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout

    def tell(self, **told: object) -> None:
        self._questions.write(json.dumps(told).encode() + b"\n")
        self._questions.flush()

    def hear(self) -> Any:  # noqa: ANN401  # whatever it says
        return json.loads(self._answers.readline())


class _Bench:
    """The server, the flood, and what they were found to do."""

    def __init__(self, directory: Path, ways: Sequence[str], running: ExitStack) -> None:
        with pinned(0):
            server = _Process("bench.gate_flood_server", directory, running)
        running.enter_context(pinned(1))
        said = server.hear()
        self._ports, token = said["ports"], said["tokens"]["quiet"]
        self._flood = _Process("bench.flood_wire", directory, running)
        self._payload = payload_of("digits")
        self._told = {"token": said["tokens"]["flood"], "method": METHOD, "payload": self._payload.hex()}
        self._invokes = {way: _caller(self._ports[way], directory, running) for way in ways}
        self._metadata = (("authorization", f"Bearer {token}"),)
        self.samples: dict[tuple[str, str], list[float]] = {(way, how): [] for way in ways for how in FLOODS}
        self.rates: dict[tuple[str, str], list[float]] = {(way, how): [] for way in ways for how in FLOODS}

    def turn(self, way: str, how: str, *, counts: bool) -> None:
        """The other tenant's calls of one turn, alone or beside a flood."""
        (connections, at_once), begun, served = FLOODS[how], time.perf_counter(), 0
        if connections:
            self._flood.tell(port=self._ports[way], connections=connections, at_once=at_once, **self._told)
            time.sleep(SETTLE_S)
        took = _call_on(self._invokes[way], self._payload, self._metadata)
        seconds = time.perf_counter() - begun
        if connections:
            self._flood.tell()
            served, _refused = self._flood.hear()
        if counts:
            self.samples[way, how] += took
            self.rates[way, how].append(served / seconds)


def flooded(directory: Path, ways: Sequence[str] = WAYS) -> list[Result]:
    """The other tenant's percentiles each way, alone and beside both floods."""
    with ExitStack() as running:
        bench = _Bench(directory, ways, running)
        ends = time.monotonic() + ALL_S
        for turn in range(TURNS + 1):
            if turn > FEWEST and time.monotonic() > ends:
                break
            for way in ways:
                for how in FLOODS:
                    bench.turn(way, how, counts=turn > 0)  # the first one warms up
    return [result for way in ways for result in _describe(way, bench.samples, bench.rates)]


def _caller(port: int, directory: Path, running: ExitStack) -> Any:  # noqa: ANN401  # grpcio's
    pair = load_pair(directory / "quiet")
    credentials = grpc.ssl_channel_credentials(
        pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem
    )
    options = [("grpc.ssl_target_name_override", f"inference.{TRUST_DOMAIN}"), ("grpc.enable_http_proxy", 0)]
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
    running.callback(channel.close)
    return channel.unary_unary(METHOD)


def _call_on(invoke: Any, payload: bytes, metadata: Any) -> list[float]:  # noqa: ANN401  # grpcio's
    took: list[float] = []
    ends = time.perf_counter() + TURN_S
    while len(took) < CALLS and (not took or time.perf_counter() < ends):
        begun = time.perf_counter()
        invoke(payload, metadata=metadata, timeout=TIMEOUT_S)
        took.append(1000 * (time.perf_counter() - begun))
    return took


def _describe(
    way: str, samples: dict[tuple[str, str], list[float]], rates: dict[tuple[str, str], list[float]]
) -> list[Result]:
    label = f"{way}, behind the gate" if way in GATED else f"{way} alone"
    results = []
    for how in FLOODS:
        took = samples[way, how]
        results += [
            Result(f"{label}: other tenant {how}: p50", statistics.median(took), "ms"),
            Result(f"{label}: other tenant {how}: p99", p99(took), "ms"),
        ]
    for how in list(FLOODS)[1:]:
        ratio = p99(samples[way, how]) / p99(samples[way, "alone"])
        results += [
            Result(f"{label}: {how}: served of the flood", statistics.median(rates[way, how]), "calls/s"),
            Result(
                f"{label}: {how}: other tenant's p99 over alone",
                ratio,
                "times",
                f"≤ {GOAL:g}" if way in GATED else None,
                ratio <= GOAL if way in GATED else None,
            ),
        ]
    return results


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(samples)[len(samples) * 99 // 100]
