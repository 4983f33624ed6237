"""Callers that never stop asking: what they are refused is what a roll or a renewal cost."""

from __future__ import annotations

import collections
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2

from casemate.cli.attacks import blank
from casemate.cli.story import MODEL
from casemate.client.session import Session

CALLERS = 4
METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Load:
    """Closed loops over one session: each caller asks again when it was answered."""

    def __init__(self, session: Session) -> None:
        self.answered = 0
        self.failed: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        channel = session.channel("inference")
        self._infer = channel.unary_unary(
            METHOD,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CALLERS)]

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

    def _ask(self) -> None:
        image = service_pb2.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, 64])
        request = service_pb2.ModelInferRequest(
            model_name=MODEL, inputs=[image], raw_input_contents=[blank().tobytes()]
        )
        while not self._ended.is_set():
            failure = None
            try:
                self._infer(request, timeout=20)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a call that failed
                code = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
                failure = f"{code}: {error.details() if isinstance(error, grpc.RpcError) else error}"[:200]
            with self._lock:
                if failure is None:
                    self.answered += 1
                else:
                    self.failed[failure] += 1
            # A few hundred a second are enough to hit every moment of a roll.
            time.sleep(0.005)


def predictions_counted(port: int, identity: Path) -> float:
    """How many predictions the replica whose metrics are on this port of loopback has answered."""
    context = ssl.create_default_context(cafile=str(identity / "ca.pem"))
    context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        secured = stack.enter_context(context.wrap_socket(plain, server_hostname="inference.casemate.internal"))
        secured.sendall(b"GET /metrics HTTP/1.0\r\nHost: inference.casemate.internal\r\n\r\n")
        answer = http.client.HTTPResponse(secured)
        answer.begin()
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("casemate_calls_total{") and "ModelInfer" in line
    )
