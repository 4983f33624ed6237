"""Callers that never stop asking: what they are refused is what a roll, a kill or a renewal cost."""

from __future__ import annotations

import collections
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2

from casemate.cli.attacks import blank
from casemate.cli.story import DATASET, MODEL
from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.transport.channel import RotatingChannel

METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Load:
    """Closed loops, two callers of each kind: each asks again when it was answered.

    Args:
        caller: asks for predictions.
        trainer: reads what a version is.
        fresh: asks for a new token each time; nobody else's session.
    """

    def __init__(self, *, caller: Session, trainer: Session, fresh: Session) -> None:
        self.answered: collections.Counter[str] = collections.Counter()
        self.failed: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sessions = (caller, trainer, fresh)
        # Predictions have no effect to repeat; the protocol, which is not ours, has no place to say so.
        self._channel = RotatingChannel(
            target=caller.endpoints.inference,
            service_name=caller.service_name("inference"),
            source=caller.source,
            idempotent_methods=frozenset({METHOD}),
            # A token of the very certificate that the connection shows: leaves are renewed meanwhile.
            call_metadata=lambda pair: caller._bearer("inference", pair),
        )
        infer = self._channel.unary_unary(
            METHOD,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        image = service_pb2.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, 64])
        request = service_pb2.ModelInferRequest(
            model_name=MODEL, inputs=[image], raw_input_contents=[blank().tobytes()]
        )
        datasets = Datasets(trainer)

        def ask_for_token() -> None:
            fresh.forget_tokens()
            fresh.token("inference")

        kinds: dict[str, Callable[[], object]] = {
            "predictions": lambda: infer(request, timeout=20),
            "datasets": lambda: datasets.describe(DATASET, 1),
            "tokens": ask_for_token,
        }
        self._threads = [
            threading.Thread(target=self._ask, args=kind, daemon=True) for kind in kinds.items() for _ in range(2)
        ]

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Asks for the length of the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()
            self._channel.close()
            for session in self._sessions:
                session.close()

    def said(self) -> str:
        """How many calls of each kind were answered."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.answered.items()))

    def _ask(self, kind: str, call: Callable[[], object]) -> None:
        while not self._ended.is_set():
            failure = None
            try:
                call()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a call that failed
                code = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
                failure = f"{kind}: {code}: {error.details() if isinstance(error, grpc.RpcError) else error}"[:200]
            with self._lock:
                if failure is None:
                    self.answered[kind] += 1
                else:
                    self.failed[failure] += 1
            # A few hundred a second are enough to hit every moment of a roll.
            time.sleep(0.01)


def metrics_page(port: int, service: str, trusted: Path, *, shown: Path | None) -> str:
    """What a replica whose metrics are on this port of loopback shows, under its service's name.

    Args:
        port: of loopback.
        service: whose name it has to prove.
        trusted: a leaf's folder: whose root to trust.
        shown: a leaf's folder: which certificate to show; None for none.

    Raises:
        OSError: the connection is refused.
    """
    context = ssl.create_default_context(cafile=str(trusted / "ca.pem"))
    if shown is not None:
        context.load_cert_chain(shown / "cert.pem", shown / "key.pem")
    name = f"{service}.casemate.internal"
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        secured = stack.enter_context(context.wrap_socket(plain, server_hostname=name))
        secured.sendall(f"GET /metrics HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(secured)
        answer.begin()
        return answer.read().decode()


def calls_counted(port: int, service: str, identity: Path, method: str) -> float:
    """How many calls of a method a replica has answered."""
    lines = metrics_page(port, service, identity, shown=identity).splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("casemate_calls_total{") and f"/{method}" in line
    )
