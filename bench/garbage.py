"""Tokens that are worth nothing, in number: what they cost the server, and what the good notice of them.

`python -m bench.garbage PORT RATE DIRECTORY KID` sends that many a second from a line on its
standard input to the next one, and then says how many were refused. With DIRECTORY alone it
says what a million of them cost a gate in its own process: microseconds each, and MiB.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc

from bench.gate_load import Layer, channel_to, payload_of, pinned, start_server
from bench.gate_server import METHODS, build_gate
from bench.report import Result
from bench.tokens import Mint
from casemate.errors import Unauthenticated
from casemate.transport.certificates import CertificatePair, load_pair

LAYER = "quota"
DISTINCT = 1_000_000
WARM_UP = 100_000
SHARE = 0.3
"""Of what the server refuses in a second when it does nothing else."""
TURNS = 6
CALLS = 700
"""Calls of the good caller in a turn, with the flood and without."""


def forged(kid: str) -> Iterator[str]:
    """Distinct tokens of the right form that name a key; their signatures are noise."""
    header = _segment({"alg": "EdDSA", "kid": kid, "typ": "at+jwt"})
    claims = _segment({"iss": "https://auth.casemate.internal", "aud": "inference", "jti": uuid.uuid4().hex})
    noise = base64.urlsafe_b64encode(os.urandom(48)).decode()
    number = 0
    while True:
        number += 1
        yield f"{header}.{claims}.{number:021d}{noise}A"


def in_process(directory: Path) -> list[Result]:
    """The decision without a wire, and what a million distinct tokens leave behind."""
    pair, mint = load_pair(directory / "client"), Mint()
    # In a process of its own: what else this one does moves its memory as well.
    command = [sys.executable, "-m", "bench.garbage", str(directory)]
    root = Path(__file__).resolve().parent.parent
    said = subprocess.run(command, cwd=root, check=True, capture_output=True)  # noqa: S603  # our own module
    cost, grown = json.loads(said.stdout)
    return [
        *_decision(pair, mint, directory),
        Result("a garbage token in process", cost, "µs a token"),
        Result("1M distinct garbage tokens: memory grown by", grown, "MiB", "≤ 2", grown <= 2),
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


def _memory(directory: Path) -> tuple[float, float]:
    """Microseconds a token and MiB left by a million that no call had before.

    Most are of a key that nobody has, some of ours, some of no form.
    """
    mint = Mint()
    gate = build_gate(LAYER, mint, METHODS["echo"], directory)
    strange, ours = forged("A" * 43), forged(mint.key.kid)

    def refuse(count: int) -> float:
        begun = time.perf_counter()
        for number in range(count):
            text = next(ours) if number % 20 == 0 else next(strange)
            text = text[:-1] if number % 20 == 1 else text
            with suppress(Unauthenticated):
                gate.at_headers(METHODS["echo"], (("authorization", f"Bearer {text}"),), request_id="bench")
        return 1e6 * (time.perf_counter() - begun) / count

    refuse(WARM_UP)
    gc.collect()
    before = _resident_bytes()
    cost = refuse(DISTINCT)
    gc.collect()
    return cost, (_resident_bytes() - before) / 2**20


def floods(directory: Path) -> list[Result]:
    """Good calls while garbage takes 30 % of what the server can refuse."""
    method = METHODS["echo"]
    with ExitStack() as running:
        server = start_server("sync", "echo", directory, running)
        running.enter_context(pinned(1))
        channel = channel_to(LAYER, server.ports[LAYER], directory, running)
        good = Layer(server, channel, method, payload_of("echo"), server.token)
        good.sample(alone=200, crowd=400, callers=16)
        capacity = _refused_per_second(channel_to(LAYER, server.ports[LAYER], directory, running), method, server.kid)
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
            # The sender shares a processor with the good caller and may not get that far: then nothing is shown.
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
    command = [sys.executable, "-m", "bench.garbage", str(port), str(rate), str(directory), kid]
    process = running.enter_context(
        subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parent.parent
        )
    )
    flood = _Flood(process)
    running.callback(flood.close)
    return flood


def _refused_per_second(channel: grpc.Channel, method: str, kid: str, calls: int = 3000) -> float:
    tokens, left, ended = forged(kid), iter(range(calls)), threading.Semaphore(0)
    invoke: Any = channel.unary_unary(method)
    lock = threading.Lock()

    def follow(_call: object = None) -> None:
        if next(left, None) is None:
            ended.release()
            return
        with lock:
            token = next(tokens)
        invoke.future(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=30).add_done_callback(follow)

    begun = time.perf_counter()
    for _ in range(16):
        follow()
    for _ in range(16):
        ended.acquire()
    return calls / (time.perf_counter() - begun)


def _send(port: int, rate: float, directory: Path, kid: str) -> None:
    """Sends at that rate, whatever the answers; from one line of standard input to the next."""
    tokens = forged(kid)
    # It shares its processor with the good caller, whose own turn must not be what it takes.
    os.nice(19)
    with ExitStack() as running:
        channel = channel_to(LAYER, port, directory, running)
        invoke: Any = channel.unary_unary(METHODS["echo"])
        while sys.stdin.readline():
            sent: list[Any] = []
            pause, ended = threading.Event(), threading.Thread(target=sys.stdin.readline, daemon=True)
            ended.start()
            begun = time.monotonic()
            while ended.is_alive():
                while len(sent) < rate * (time.monotonic() - begun):
                    metadata = (("authorization", f"Bearer {next(tokens)}"),)
                    sent.append(invoke.future(b"", metadata=metadata, timeout=30))
                pause.wait(0.002)
            codes = [call.code() for call in sent]
            print(sum(code is grpc.StatusCode.UNAUTHENTICATED for code in codes), flush=True)


def _segment(members: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _p99(samples: list[float]) -> float:
    return sorted(samples)[len(samples) * 99 // 100]


if __name__ == "__main__" and len(sys.argv) == 2:
    print(json.dumps(_memory(Path(sys.argv[1]))))
elif __name__ == "__main__":
    _send(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
