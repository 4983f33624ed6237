"""ModelInfer and ModelStreamInfer, free of any host: a caller and a request in, bytes out."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, Exhausted, InternalError, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.publishing import tenant_of
from services.inference.tensors import encode_raw, encode_typed
from services.inference.validation import Limits, Tensors, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casemate.gate.core.caller import Caller
    from services.inference.catalogue import Catalogue
    from services.inference.loader import LoadedModel
    from services.inference.tensors import Array

_RETRY_BUSY = timedelta(seconds=1)
_LOGGER = logging.getLogger(__name__)


class Predictions:
    """Predictions from loaded models.

    Args:
        catalogue: what is loaded.
        limits: caps on one request and its reply.
        streams: how many may run at once. Each holds a thread of the server, so it stays below their number.
    """

    def __init__(self, *, catalogue: Catalogue, limits: Limits, streams: int) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._streams = threading.BoundedSemaphore(streams)

    def infer(self, caller: Caller, request: wire.ModelInferRequest) -> bytes:
        """One prediction; the serialized ModelInferResponse.

        The reply's contents are raw when the request's were, or when an output's
        datatype travels raw only.

        Raises:
            NotFound: no such model in the caller's tenant.
            FailedPrecondition: reason MODEL_NOT_READY.
            InvalidRequest: with the fields that are wrong.
            Exhausted: reason REQUEST_TOO_LARGE: the reply would be too large.
        """
        return self._infer(caller, request).SerializeToString()

    def stream(
        self, caller: Caller, requests: Iterable[wire.ModelInferRequest], *, status_on_error: bool
    ) -> Iterator[bytes]:
        """A prediction per request, in order; serialized ModelStreamInferResponses.

        Args:
            caller: whose models are meant.
            requests: as they arrive.
            status_on_error: end the stream with the first error's status, instead of
                reporting it as text and going on.

        Raises:
            Exhausted: too many streams run already.
        """
        if not self._streams.acquire(blocking=False):
            raise Exhausted("too many streams at once", retry_after=_RETRY_BUSY)
        try:
            yield from self._replies(caller, requests, status_on_error=status_on_error)
        finally:
            self._streams.release()

    def _replies(
        self, caller: Caller, requests: Iterable[wire.ModelInferRequest], *, status_on_error: bool
    ) -> Iterator[bytes]:
        for request in requests:
            try:
                response = self._infer(caller, request)
                response.parameters["triton_final_response"].bool_param = True
                reply = wire.ModelStreamInferResponse(infer_response=response)
            except Exception as error:
                if status_on_error:
                    raise
                reply = wire.ModelStreamInferResponse(error_message=_error_text(error))
                reply.infer_response.id = request.id
            yield reply.SerializeToString()

    def _infer(self, caller: Caller, request: wire.ModelInferRequest) -> wire.ModelInferResponse:
        loaded = self._catalogue.find(tenant_of(caller), request.model_name, request.model_version)
        began = time.perf_counter_ns()
        try:
            tensors = read_tensors(
                request, inputs=loaded.instance.inputs, outputs=loaded.instance.outputs, limits=self._limits
            )
            read = time.perf_counter_ns()
            outputs = loaded.instance.run(tensors.inputs)
            ran = time.perf_counter_ns()
            response = self._response(loaded, request, tensors, outputs)
        except BaseException:
            loaded.statistics.failed(time.perf_counter_ns() - began)
            raise
        loaded.statistics.succeeded(
            rows=tensors.rows,
            input_ns=read - began,
            infer_ns=ran - read,
            output_ns=time.perf_counter_ns() - ran,
        )
        return response

    def _response(
        self, loaded: LoadedModel, request: wire.ModelInferRequest, tensors: Tensors, outputs: Mapping[str, Array]
    ) -> wire.ModelInferResponse:
        response = wire.ModelInferResponse(
            model_name=request.model_name, model_version=str(loaded.slot.number), id=request.id
        )
        total = 0
        for spec in tensors.outputs:
            array = outputs[spec.name]
            total += array.nbytes
            if total > self._limits.reply_bytes:
                raise Exhausted("the reply is too large", reason=Reason.REQUEST_TOO_LARGE)
            output = response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=array.shape)
            if tensors.raw_reply:
                response.raw_output_contents.append(encode_raw(array, spec.datatype))
            elif spec.datatype.contents is not None:
                getattr(output.contents, spec.datatype.contents).extend(encode_typed(array, spec.datatype))
        return response


def _error_text(error: Exception) -> str:
    """What a stream tells of an error: constant text and field names, as a status would."""
    if not isinstance(error, CasemateError):
        _LOGGER.error("a prediction on a stream failed", exc_info=error)
        return InternalError.public_message
    if isinstance(error, InternalError):
        _LOGGER.error("a prediction on a stream failed", exc_info=error)
    fields = "; ".join(f"{violation.field}: {violation.description}" for violation in error.violations)
    return f"[{error.code}] {error.public_message}" + (f" ({fields})" if fields else "")
