"""Tokens that are worth nothing, in number: what they cost the server, and what the good notice of them.

`python -m bench.garbage DIRECTORY` says what a million of them cost a gate in a process of its own:
microseconds each, and MiB. Over the wire they come from `bench.garbage_wire`.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from bench.garbage_wire import Wire
from bench.gate_load import Layer, channel_to, payload_of, pinned, start_server
from bench.gate_server import METHODS, build_gate
from bench.report import Result
from bench.tokens import Mint, forged_parts
from casemate.errors import Unauthenticated
from casemate.transport.certificates import CertificatePair, load_pair

LAYER = "quota"
DISTINCT = 1_000_000
WARM_UP = 100_000
WAVE = 20_000
MEMORY_S = 75.0
"""Seconds for the million; the quiet machine needs half of them."""
SHARE = 0.3
"""Of what the server refuses in a second when it does nothing else."""
TURNS = 6
CALLS = 700
"""Calls of the good caller in a turn, with the flood and without."""


def forged(kid: str) -> Iterator[str]:
    """Distinct tokens of the right form that name a key; their signatures are noise."""
    before, after = forged_parts(kid)
    number = 0
    while True:
        number += 1
        yield f"{before}{number:021d}{after}"


def in_process(directory: Path) -> list[Result]:
    """The decision without a wire, and what a million distinct tokens leave behind."""
    pair, mint = load_pair(directory / "client"), Mint()
    # In a process of its own: what else this one does moves its memory as well.
    command = [sys.executable, "-m", "bench.garbage", str(directory)]
    root = Path(__file__).resolve().parent.parent
    said = subprocess.run(command, cwd=root, check=True, capture_output=True)  # noqa: S603  # our own module
    cost, grown, refused = json.loads(said.stdout)
    return [
        *_decision(pair, mint, directory),
        Result("a garbage token in process", cost, "µs a token"),
        Result(
            "distinct garbage tokens that no call had before", refused / 1e6, "million", "1", met=refused >= DISTINCT
        ),
        Result("memory grown by them", grown, "MiB", "≤ 2", grown <= 2),
    ]


def _decision(pair: CertificatePair, mint: Mint, directory: Path) -> list[Result]:
    method = METHODS["digits"]
    connection = {
        "ssl_tls_version": (b"TLSv1.3",),
        "x509_pem_cert": (pair.certificate_chain_pem,),
        "ssl_negotiated_key_exchange_group": (b"X25519MLKEM768",),
    }
    metadata = (("user-agent", "bench"), ("authorization", f"Bearer {mint.issue(pair.thumbprint)}"))
    results = []
    for layer, name, goal in (
        ("cached", "token, scope, peer, binding", 10.0),
        (LAYER, "and grant, quota, counts", None),
    ):
        gate = build_gate(layer, mint, method, directory)
        samples = []
        for _ in range(20_000):
            begun = time.perf_counter_ns()
            admission = gate.at_headers(method, metadata, request_id="bench")
            caller = gate.at_message(admission, connection)
            gate.authorize(admission, caller, "model/digits")
            gate.finish(admission, "OK")
            samples.append(time.perf_counter_ns() - begun)
        value = statistics.median(samples) / 1000
        results.append(
            Result(
                f"cached decision in process: {name}",
                value,
                "µs a call",
                None if goal is None else f"≤ {goal:g}",
                None if goal is None else value <= goal,
            )
        )
    return results


def _memory(directory: Path) -> tuple[float, float, int]:
    """Microseconds of the processor a token, and MiB left, by a million that no call had before, or as many as in time.

    Most are of a key that nobody has, some of ours, some of no form.
    """
    mint = Mint()
    gate = build_gate(LAYER, mint, METHODS["echo"], directory)
    strange, ours = forged("A" * 43), forged(mint.key.kid)

    def refuse(count: int) -> float:
        begun = time.process_time()
        for number in range(count):
            text = next(ours) if number % 20 == 0 else next(strange)
            text = text[:-1] if number % 20 == 1 else text
            with suppress(Unauthenticated):
                gate.at_headers(METHODS["echo"], (("authorization", f"Bearer {text}"),), request_id="bench")
        return time.process_time() - begun

    ends = time.monotonic() + MEMORY_S
    refuse(WARM_UP)
    gc.collect()
    before = _resident_bytes()
    took_s, refused = refuse(WAVE), WAVE
    while refused < DISTINCT and time.monotonic() < ends:
        took_s += refuse(WAVE)
        refused += WAVE
    gc.collect()
    return 1e6 * took_s / refused, (_resident_bytes() - before) / 2**20, refused


def floods(directory: Path) -> list[Result]:
    """Good calls while garbage takes 30 % of what the server can refuse."""
    method = METHODS["echo"]
    with ExitStack() as running:
        server = start_server("sync", "echo", directory, running)
        running.enter_context(pinned(1))
        channel = channel_to(LAYER, server.ports[LAYER], directory, running)
        good = Layer(server, channel, method, payload_of("echo"), server.token)
        good.sample(alone=200, crowd=400, callers=16)
        capacity = _refused_per_second(Wire(server.ports[LAYER], directory, server.kid))
        flood = _start_flood(server.ports[LAYER], SHARE * capacity, directory, server.kid, running)
        calm, pressed, refused, seconds = [], [], 0, 0.0
        for _ in range(TURNS):
            calm += [good.call() for _ in range(CALLS)]
            begun = time.perf_counter()
            flood.ask()
            pressed += [good.call() for _ in range(CALLS)]
            refused += int(flood.ask(answer=True))
            seconds += time.perf_counter() - begun
    ratio = _p99(pressed) / _p99(calm)
    return [
        Result("forged tokens refused over the wire, at most", capacity, "calls/s"),
        Result("flood of them", refused / seconds, "calls/s"),
        Result("good caller, calm: p50", statistics.median(calm), "µs"),
        Result("good caller, calm: p99", _p99(calm), "µs"),
        Result("good caller, flooded: p50", statistics.median(pressed), "µs"),
        Result("good caller, flooded: p99", _p99(pressed), "µs"),
        Result(
            "good caller's p99, flooded over calm",
            ratio,
            "times",
            "≤ 1.5, at 30 % of what can be refused",
            # Where the sender does not get that far, nothing is shown.
            ratio <= 1.5 and refused / seconds >= 0.9 * SHARE * capacity,
        ),
    ]


class _Flood:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        self._questions, self._answers = process.stdin, process.stdout

    def ask(self, *, answer: bool = False) -> str:
        """Begins, or ends and gives the number of refusals."""
        self._questions.write(b"\n")
        self._questions.flush()
        return self._answers.readline().decode() if answer else ""

    def close(self) -> None:
        """Lets the process go."""
        self._questions.close()


def _start_flood(port: int, rate: float, directory: Path, kid: str, running: ExitStack) -> _Flood:
    command = [sys.executable, "-m", "bench.garbage_wire", str(port), str(rate), str(directory), kid]
    process = running.enter_context(
        subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parent.parent
        )
    )
    flood = _Flood(process)
    running.callback(flood.close)
    return flood


def _refused_per_second(wire: Wire, calls: int = 5000) -> float:
    """What the server refuses in a second when it does nothing else."""
    wire.run(rate=None, until=lambda: wire.sent >= 500)
    before = wire.sent
    seconds = wire.run(rate=None, until=lambda: wire.sent - before >= calls)
    return (wire.sent - before) / seconds


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _p99(samples: list[float]) -> float:
    return sorted(samples)[len(samples) * 99 // 100]


if __name__ == "__main__":
    print(json.dumps(_memory(Path(sys.argv[1]))))
