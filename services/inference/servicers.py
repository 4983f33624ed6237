"""The gRPC faces: each rpc translates to one host-free method, and decides nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from casemate.errors import DeadlineExceeded
from casemate.gate.adapters.caller_context import current_caller
from casemate.inference.v1 import model_service_pb2
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.registry import LATER, AnswersLater, RegisteredService
from services.inference.batch_jobs import CallerLeft
from services.inference.predictions import Patience
from services.inference.tracing import Sampler, begin
from services.inference.wire_guard import parse_infer_request, small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.gate.adapters.incoming import Incoming
    from casemate.gate.core.caller import Caller
    from services.inference.index import Index
    from services.inference.loader import LoadedModel
    from services.inference.models import Models
    from services.inference.predictions import Predictions
    from services.inference.publishing import Publishing
    from services.inference.tracing import Trace
    from services.inference.wire_guard import InferRequest

OPEN_INFERENCE = wire.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
MODEL_SERVICE = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

_STATUS_ON_ERROR = ("triton_grpc_error", "true")
"""Metadata by which tritonclient asks for real statuses on a stream."""


def open_inference_service(
    *, models: Models, predictions: Predictions, sampler: Sampler | None = None
) -> RegisteredService:
    """All 20 rpcs of `inference.GRPCInferenceService`; `sampler` chooses which predictions are traced."""
    refuse = models.refuse
    unary: dict[str, Callable[[Caller, Any], bytes]] = {
        "ServerLive": models.server_live,
        "ServerReady": models.server_ready,
        "ModelReady": models.model_ready,
        "ServerMetadata": models.server_metadata,
        "ModelMetadata": models.model_metadata,
        "ModelConfig": models.model_config,
        "ModelStatistics": models.model_statistics,
        "RepositoryIndex": models.repository_index,
        "RepositoryModelLoad": models.load,
        "RepositoryModelUnload": models.unload,
        "SystemSharedMemoryStatus": models.system_shared_memory,
        "SystemSharedMemoryRegister": refuse,
        "SystemSharedMemoryUnregister": refuse,
        "CudaSharedMemoryStatus": models.cuda_shared_memory,
        "CudaSharedMemoryRegister": refuse,
        "CudaSharedMemoryUnregister": refuse,
        "TraceSetting": refuse,
        "LogSettings": refuse,
    }
    handlers = {name: _unary(method, getattr(wire, f"{name}Request")) for name, method in unary.items()}
    infer = _Infer(predictions, sampler or Sampler(one_in=0))
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(
        infer.one, request_deserializer=parse_infer_request, response_serializer=None
    )
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        infer.stream, request_deserializer=parse_infer_request, response_serializer=None
    )
    return RegisteredService(OPEN_INFERENCE, handlers, at_once={"ModelInfer": infer.at_once})


class _Infer:
    """ModelInfer and ModelStreamInfer, by whichever thread brings the request."""

    def __init__(self, predictions: Predictions, sampler: Sampler) -> None:
        self._predictions = predictions
        self._sampler = sampler

    def one(self, request: InferRequest, context: grpc.ServicerContext) -> object:
        """By a thread of the call's own, which waits for the answer only where nobody else can give it."""
        if isinstance(context, AnswersLater):
            return self._later(request, context, lead_here=True)
        try:
            return self._predictions.infer(current_caller(), request, _patience(context, self._sampler))
        except CallerLeft:
            return _left(context)

    def stream(self, requests: Incoming, context: grpc.ServicerContext) -> Iterator[bytes]:
        """One after the other."""
        status_on_error = _STATUS_ON_ERROR in tuple(context.invocation_metadata())
        patience = replace(_patience(context, self._sampler), end=requests.deny)
        try:
            yield from self._predictions.stream(
                current_caller(), requests, status_on_error=status_on_error, patience=patience
            )
        except CallerLeft:
            _left(context)

    def at_once(
        self, caller: Caller, request: InferRequest, context: grpc.ServicerContext
    ) -> Callable[[Any, Any], object] | None:
        """By the thread that serves all calls: see `registry.AtOnce`."""
        predictions = self._predictions
        loaded = predictions.find(caller, request)
        if loaded is None:
            return None
        if predictions.is_quick(loaded, request):
            return partial(self._quickly, loaded)
        if loaded.batcher.waiting:
            refusal = predictions.refusal(loaded, context.time_remaining())
            if refusal is not None:
                return partial(_refuse, refusal)
        if predictions.is_quickly_read(loaded, request):
            return self._queued
        return None

    def _quickly(self, loaded: LoadedModel, request: InferRequest, context: grpc.ServicerContext) -> bytes:
        return self._predictions.infer_quickly(loaded, request, _trace(context, self._sampler))

    def _queued(self, request: InferRequest, context: Any) -> object:  # noqa: ANN401  # grpcio's, and ours
        return self._later(request, context, lead_here=False)

    def _later(self, request: InferRequest, context: Any, *, lead_here: bool) -> object:  # noqa: ANN401  # likewise
        self._predictions.infer_later(
            current_caller(),
            request,
            _patience(context, self._sampler),
            conclude=lambda answer: context.conclude(partial(_or_left, answer, context)),
            spawn=context.in_thread,
            lead_here=lead_here,
        )
        return LATER


def model_service(publishing: Publishing, index: Index) -> RegisteredService:
    """All rpcs of `casemate.inference.v1.ModelService`."""

    def publish(requests: Incoming, context: grpc.ServicerContext) -> bytes:
        return publishing.publish(current_caller(), requests, end=requests.deny, cancel=context.cancel)

    return RegisteredService(
        MODEL_SERVICE,
        {
            "PublishModel": grpc.stream_unary_rpc_method_handler(
                publish,
                request_deserializer=model_service_pb2.PublishModelRequest.FromString,
                response_serializer=None,
            ),
            "ReloadModel": _unary(publishing.reload, model_service_pb2.ReloadModelRequest),
            "ListModels": _unary(index.list_models, model_service_pb2.ListModelsRequest),
        },
    )


def _unary(method: Callable[[Caller, Any], bytes], request: Any) -> grpc.RpcMethodHandler[Any, bytes]:  # noqa: ANN401  # a message class of either pool
    def call(message: Any, context: grpc.ServicerContext) -> bytes:  # noqa: ANN401
        _remaining(context)
        return method(current_caller(), message)

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=small(request.FromString), response_serializer=None
    )


def _refuse(refusal: Exception, _message: object, _context: grpc.ServicerContext) -> bytes:
    raise refusal


def _or_left(answer: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
    try:
        return answer()
    except CallerLeft:
        return _left(context)


def _left(context: grpc.ServicerContext) -> bytes:
    """Ends a call whose peer is gone: an error of ours would only reach grpcio's log, as one of the program's."""
    context.set_code(grpc.StatusCode.CANCELLED)
    return b""


def _patience(context: grpc.ServicerContext, sampler: Sampler) -> Patience:
    return Patience(_remaining(context), context.add_callback, cancel=context.cancel, trace=_trace(context, sampler))


def _trace(context: grpc.ServicerContext, sampler: Sampler) -> Trace | None:
    return begin(context.invocation_metadata()) if sampler.choose() else None


def _remaining(context: grpc.ServicerContext) -> float | None:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceeded("passed before the work began")  # it waited for a thread; nobody waits for it
    return remaining
