"""A small Open Inference server of the tests' own, to stand behind our door: it adds up rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.registry import RegisteredService
from services.inference.servicers import OPEN_INFERENCE


class Sums:
    """Model `sums`: takes `rows` FP32 (-1, 3), gives `sum` FP32 (-1). Set `answer` to answer otherwise."""

    def __init__(self) -> None:
        self.ready = True
        self.typed = False
        self.seen: list[tuple[wire.ModelInferRequest, dict[str, str]]] = []
        self.answer: object | None = None
        self.hold: threading.Event | None = None
        self.poison: float | None = None
        self.begun = threading.Semaphore(0)

    def service(self) -> RegisteredService:
        def handler(method: object, request: str) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(
                method, getattr(wire, f"{request}Request").FromString, lambda message: message.SerializeToString()
            )

        names = {"ModelReady": self._ready, "ModelMetadata": self._metadata, "ModelInfer": self._infer}
        return RegisteredService(OPEN_INFERENCE, {name: handler(method, name) for name, method in names.items()})

    def _ready(self, request: wire.ModelReadyRequest, _context: grpc.ServicerContext) -> wire.ModelReadyResponse:
        return wire.ModelReadyResponse(ready=self.ready and request.name == "sums")

    def _metadata(
        self, _request: wire.ModelMetadataRequest, _context: grpc.ServicerContext
    ) -> wire.ModelMetadataResponse:
        response = wire.ModelMetadataResponse(name="sums")
        response.inputs.add(name="rows", datatype="FP32", shape=(-1, 3))
        response.outputs.add(name="sum", datatype="FP32", shape=(-1,))
        return response

    def _infer(self, request: wire.ModelInferRequest, context: grpc.ServicerContext) -> wire.ModelInferResponse:
        self.seen.append((request, dict(context.invocation_metadata())))
        self.begun.release()
        if self.hold is not None:
            assert self.hold.wait(30)
        if isinstance(self.answer, grpc.StatusCode):
            context.abort(self.answer, "canary of the back end")
        if isinstance(self.answer, wire.ModelInferResponse):
            return self.answer
        rows = np.frombuffer(request.raw_input_contents[0], dtype="<f4").reshape(tuple(request.inputs[0].shape))
        if self.poison is not None and self.poison in rows:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "canary of the back end")
        sums = rows.sum(axis=1)
        response = wire.ModelInferResponse(model_name="sums")
        output = response.outputs.add(name="sum", datatype="FP32", shape=sums.shape)
        if self.typed:
            output.contents.fp32_contents.extend(sums.tolist())
        else:
            response.raw_output_contents.append(sums.astype("<f4").tobytes())
        return response


class LocalServer:
    """Serves in plaintext, to this machine alone."""

    def __init__(self, service: RegisteredService, address: str, kind: grpc.LocalConnectionType) -> None:
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.name, dict(service.handlers)),)
        )
        self.port = self._server.add_secure_port(address, grpc.local_server_credentials(kind))
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()
