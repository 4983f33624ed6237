"""The load of `bench.gate`: callers that wait for each answer, and the process that they call."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc

from bench.gate_server import METHODS, TRUST_DOMAIN
from casemate.cli import digits
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.certificates import load_pair
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One layer in one round: each call of one caller alone, and the rate and cost of many at once."""

    alone_us: list[float]
    calls_per_second: float
    cpu_us: float

    @property
    def p50_us(self) -> float:
        """The median of the lone caller."""
        return statistics.median(self.alone_us)


class Server:
    """A running `bench.gate_server`."""

    def __init__(self, process: subprocess.Popen[bytes], answers: IO[bytes], questions: IO[bytes]) -> None:
        self._process = process
        self._answers = answers
        self._questions = questions
        said = json.loads(answers.readline())
        self.ports: dict[str, int] = said["ports"]
        self.token: str = said["token"]
        self.kid: str = said["kid"]

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        self._questions.write(b"\n")
        self._questions.flush()
        return float(self._answers.readline())


class Layer:
    """One port of a server, and how to call it."""

    def __init__(self, server: Server, channel: grpc.Channel, method: str, payload: bytes, token: str | None) -> None:
        self._server = server
        self._invoke: Any = channel.unary_unary(method)
        self._payload = payload
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()

    def sample(self, *, alone: int, crowd: int, callers: int) -> Sample:
        """One round."""
        latencies = [self.call() for _ in range(alone)]
        cpu_before, begun = self._server.cpu_seconds(), time.perf_counter()
        self._crowd(crowd, callers)
        seconds = time.perf_counter() - begun
        cpu = self._server.cpu_seconds() - cpu_before
        return Sample(alone_us=latencies, calls_per_second=crowd / seconds, cpu_us=1e6 * cpu / crowd)

    def call(self) -> float:
        """One call; microseconds."""
        begun = time.perf_counter_ns()
        self._invoke(self._payload, metadata=self._metadata, timeout=TIMEOUT_S)
        return (time.perf_counter_ns() - begun) / 1000

    def _crowd(self, calls: int, callers: int) -> None:
        """That many calls, by callers that each wait for their answer: the answer starts the next call."""
        left, ended = iter(range(calls)), threading.Semaphore(0)

        def follow(call: Any = None) -> None:  # noqa: ANN401  # a future of grpcio's
            if call is not None:
                call.result()
            if next(left, None) is None:
                ended.release()
                return
            self._invoke.future(self._payload, metadata=self._metadata, timeout=TIMEOUT_S).add_done_callback(follow)

        for _ in range(callers):
            follow()
        for _ in range(callers):
            if not ended.acquire(timeout=TIMEOUT_S):
                raise RuntimeError("a call failed")


def payload_of(work: str) -> bytes:
    """The request of a work: a name, or one image of the digits."""
    if work == "echo":
        return wire.ModelReadyRequest(name="digits").SerializeToString()
    request = wire.ModelInferRequest(model_name="digits", id="bench")
    request.inputs.add(name="images", datatype="FP32", shape=[1, digits.PIXELS])
    request.raw_input_contents.append(digits.split()[1].pixels[0].tobytes())
    return request.SerializeToString()


@contextmanager
def pinned(processor: int) -> Iterator[None]:
    """On one processor while this lasts, where the system can do that; what is started meanwhile stays on it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[processor % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def start_server(kind: str, work: str, directory: Path, running: ExitStack) -> Server:
    """A server on the first processor, until `running` ends."""
    with pinned(0):
        process = running.enter_context(
            subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
                [sys.executable, "-m", "bench.gate_server", kind, work, str(directory)],
                env={**os.environ, CIPHER_SUITES_VARIABLE: CIPHER_SUITES},  # noqa: TID251  # its own, and the floor
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).resolve().parent.parent,
            )
        )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    running.callback(process.stdin.close)
    return Server(process, process.stdout, process.stdin)


def channel_to(layer: str, port: int, directory: Path, running: ExitStack) -> grpc.Channel:
    """A channel to one layer, as its callers need it."""
    target = f"127.0.0.1:{port}"
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    if layer == "plaintext":
        channel = grpc.insecure_channel(target, options)
    else:
        pair = load_pair(directory / "client")
        own = () if layer == "tls" else (pair.private_key_pem.reveal(), pair.certificate_chain_pem)
        options.append(("grpc.ssl_target_name_override", f"inference.{TRUST_DOMAIN}"))
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(pair.roots_pem, *own), options)
    running.callback(channel.close)
    return channel


def running_server(kind: str, work: str, directory: Path, running: ExitStack) -> dict[str, Layer]:
    """A server with all its layers, and this process on the other processor, until `running` ends."""
    server = start_server(kind, work, directory, running)
    running.enter_context(pinned(1))
    payload = payload_of(work)
    return {
        name: Layer(
            server,
            channel_to(name, port, directory, running),
            METHODS[work],
            payload,
            None if name in ("plaintext", "tls", "mtls") else server.token,
        )
        for name, port in server.ports.items()
    }
