"""ModelInfer and ModelStreamInfer, free of any host: a caller and a request in, bytes out."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import CasemateError, Exhausted, InternalError, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.asked import Asked, failure
from services.inference.batch_jobs import CallerLeft, Later, Terms
from services.inference.publishing import tenant_of
from services.inference.tensors import encode_typed, encoded_bytes, view_raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casemate.gate.core.caller import Caller
    from services.inference.batch_jobs import Job, Ran
    from services.inference.catalogue import Catalogue
    from services.inference.loader import LoadedModel
    from services.inference.streams import Streams
    from services.inference.tensors import Array, TensorSpec
    from services.inference.tracing import Trace
    from services.inference.validation import Limits, Tensors
    from services.inference.wire_guard import InferRequest

DEFAULT_DEADLINE = timedelta(seconds=60)
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the peer of a call waits.

    Attributes:
        seconds: until its deadline; None: it has set none.
        on_leave: has a function called, from any thread, when the peer goes; False when it has gone.
        end: has the wait for the next message of a stream end by an error, from another thread.
        cancel: ends the call from another thread.
        trace: set when this call is traced.
    """

    seconds: float | None = None
    on_leave: Callable[[Callable[[], None]], bool] = lambda _gone: True
    end: Callable[[Exception], object] = lambda _error: None
    cancel: Callable[[], object] = lambda: None
    trace: Trace | None = None


ENDLESS = Patience()
"""Of a peer that has set no deadline and stays; the server's own deadline still ends its work."""


_RAW_CONTENTS = b"\x32"  # tag of ModelInferResponse.raw_output_contents, the last of its fields
_INFER_RESPONSE = b"\x12"  # of ModelStreamInferResponse.infer_response


@dataclass(frozen=True, slots=True)
class Answer:
    """A ModelInferResponse, and its raw contents beside it: put together once, where they are sent."""

    message: wire.ModelInferResponse
    raw: Sequence[bytes | memoryview]

    def serialized(self) -> bytes:
        """Its bytes, as the wire has them."""
        pieces: list[bytes | memoryview] = [self.message.SerializeToString()]
        for contents in self.raw:
            pieces += (_RAW_CONTENTS, varint(len(contents)), contents)
        return b"".join(pieces)


def varint(value: int) -> bytes:
    """A length, as protobuf writes it."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


class Predictions:
    """Predictions from loaded models.

    Args:
        catalogue: what is loaded.
        limits: caps on one request and its reply.
        streams: how many may run at once. Each holds a thread of the server, so it stays below their number.
        deadline: how long a request may take whose caller sets no deadline, or a later one.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        limits: Limits,
        streams: Streams,
        deadline: timedelta = DEFAULT_DEADLINE,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._streams = streams
        self._deadline = deadline.total_seconds()
        self._now = now

    def infer(self, caller: Caller, request: InferRequest, patience: Patience = ENDLESS) -> bytes:
        """One prediction; the serialized ModelInferResponse.

        The reply's contents are raw when the request's were, or when an output's
        datatype travels raw only.

        Raises:
            NotFound: no such model in the caller's tenant.
            FailedPrecondition: reason MODEL_NOT_READY.
            InvalidRequest: with the fields that are wrong.
            Exhausted: reason REQUEST_TOO_LARGE: the reply would be too large; otherwise the model has too
                much to do, and when to come again.
            DeadlineExceeded: it passed before the work began.
            CallerLeft: nobody waits any more.
        """
        return self._infer(caller, request, patience).serialized()

    def find(self, caller: Caller, request: InferRequest) -> LoadedModel | None:
        """The loaded model that a request means; None when `infer` would refuse it."""
        try:
            return self._catalogue.find(tenant_of(caller), request.model_name, request.model_version)
        except CasemateError:
            return None

    def is_quick(self, loaded: LoadedModel, request: InferRequest) -> bool:
        """Whether this prediction neither waits nor computes for long, so that `infer_quickly` may make it."""
        return loaded.batcher.at_once(frozenset([(tensor.name, tuple(tensor.shape)) for tensor in request.inputs]))

    def refusal(self, loaded: LoadedModel, seconds: float | None) -> CasemateError | None:
        """What `infer` would refuse any request by that has so many seconds left, as things are; counted as its."""
        left = self._deadline if seconds is None else min(self._deadline, seconds)
        refusal = loaded.batcher.refusal(self._now() + left, loaded.statistics)
        if refusal is not None:
            loaded.statistics.failed(0, failure(refusal))
        return refusal

    def infer_quickly(self, loaded: LoadedModel, request: InferRequest, trace: Trace | None = None) -> bytes:
        """As `infer`, by a model of which `is_quick` holds for this request; in this thread and without a queue.

        Raises:
            InvalidRequest: with the fields that are wrong.
            Exhausted: reason REQUEST_TOO_LARGE: the reply would be too large.
        """
        with Asked(loaded, request, trace) as asked:
            tensors = asked.read(self._limits)
            ran = loaded.batcher.run_here(tensors.inputs, rows=tensors.rows, statistics=loaded.statistics)
            return self._answer(asked, ran).serialized()

    def is_quickly_read(self, loaded: LoadedModel, request: InferRequest) -> bool:
        """Whether it takes next to nothing to make arrays of a small request."""
        return bool(request.raw_input_contents) and all(map(_is_plain, loaded.instance.inputs))

    def infer_later(
        self,
        caller: Caller,
        request: InferRequest,
        patience: Patience,
        *,
        conclude: Callable[[Callable[[], bytes]], object],
        spawn: Callable[[Callable[[], object]], object],
        lead_here: bool,
    ) -> None:
        """As `infer`, for a call that no thread waits for.

        Args:
            caller: whose model is meant.
            request: what is asked.
            patience: how long the peer waits.
            conclude: takes, once and from any thread, what returns the answer or raises as `infer` does.
            spawn: gives work a thread; raises RuntimeError when none is left.
            lead_here: this thread may run the model; otherwise this waits for nothing.

        Raises:
            CasemateError: as `infer`; `conclude` is not called then.
        """
        tenant = tenant_of(caller)
        loaded = self._catalogue.find(tenant, request.model_name, request.model_version)
        with Asked(loaded, request, patience.trace) as asked:
            tensors = asked.read(self._limits)
            loaded.batcher.submit(
                tensors.inputs,
                rows=tensors.rows,
                terms=self._terms(tenant, caller, request, patience),
                statistics=loaded.statistics,
                later=Later(partial(self._done, asked, conclude, spawn), spawn),
                lead_here=lead_here,
            )

    def _done(
        self,
        asked: Asked,
        conclude: Callable[[Callable[[], bytes]], object],
        spawn: Callable[[Callable[[], object]], object],
        job: Job,
    ) -> None:
        """Answers in this thread, which others wait for, what is quickly answered."""
        answer = partial(conclude, partial(self._conclusion, asked, job))
        if not asked.tensors.raw_reply or not all(map(_is_plain, asked.tensors.outputs)):
            with contextlib.suppress(RuntimeError):  # the server ends
                spawn(answer)
                return
        answer()

    def _conclusion(self, asked: Asked, job: Job) -> bytes:
        with asked:
            return self._answer(asked, job.ran()).serialized()

    def stream(
        self,
        caller: Caller,
        requests: Iterable[InferRequest],
        *,
        status_on_error: bool,
        patience: Patience = ENDLESS,
    ) -> Iterator[bytes]:
        """A prediction per request, in order; serialized ModelStreamInferResponses.

        The next request is read when the transport has taken the reply to the one
        before it, so a peer that reads slowly is answered slowly and nothing piles up.

        Args:
            caller: whose models are meant.
            requests: as they arrive.
            status_on_error: end the stream with the first error's status, instead of
                reporting it as text and going on.
            patience: how long the peer waits for the whole stream.

        Raises:
            Exhausted: too many streams run already.
            DeadlineExceeded: reason STREAM_IDLE: the peer neither sent nor read for too long.
        """
        with self._streams.enter(patience.end, cancel=patience.cancel, tenant=tenant_of(caller)) as stream:
            stream.waits(self._streams.now())
            for request in requests:
                stream.works()
                reply = self._reply(caller, request, patience, status_on_error=status_on_error)
                stream.waits(self._streams.now())
                yield reply

    def _reply(self, caller: Caller, request: InferRequest, patience: Patience, *, status_on_error: bool) -> bytes:
        try:
            answer = self._infer(caller, request, patience)
            answer.message.parameters["triton_final_response"].bool_param = True
            body = answer.serialized()
            return b"".join((_INFER_RESPONSE, varint(len(body)), body))
        except CallerLeft:
            raise
        except Exception as error:
            if status_on_error:
                raise
            reply = wire.ModelStreamInferResponse(error_message=_error_text(error))
            reply.infer_response.id = request.id
        return reply.SerializeToString()

    def _infer(self, caller: Caller, request: InferRequest, patience: Patience) -> Answer:
        tenant = tenant_of(caller)
        loaded = self._catalogue.find(tenant, request.model_name, request.model_version)
        with Asked(loaded, request, patience.trace) as asked:
            tensors = asked.read(self._limits)
            terms = self._terms(tenant, caller, request, patience)
            ran = loaded.batcher.run(tensors.inputs, rows=tensors.rows, terms=terms, statistics=loaded.statistics)
            return self._answer(asked, ran)

    def _answer(self, asked: Asked, ran: Ran) -> Answer:
        done = time.perf_counter_ns()
        response = self._response(asked.loaded, asked.request, asked.tensors, ran.outputs)
        asked.answered(ran, since=done)
        return response

    def _terms(self, tenant: str, caller: Caller, request: InferRequest, patience: Patience) -> Terms:
        seconds, priority = self._deadline, 0
        if patience.seconds is not None and patience.seconds < seconds:
            seconds = patience.seconds
        if request.parameters:
            wish = request.parameters.get("timeout")
            if wish is not None and 0 < (microseconds := wish.int64_param or wish.uint64_param) < seconds * 1e6:
                seconds = microseconds / 1e6
            wish = request.parameters.get("priority")
            priority = int(wish.uint64_param or max(0, wish.int64_param)) if wish is not None else 0
        return Terms(tenant, caller.client_id or caller.spiffe_id, self._now() + seconds, priority, patience.on_leave)

    def _response(
        self, loaded: LoadedModel, request: InferRequest, tensors: Tensors, outputs: Mapping[str, Array]
    ) -> Answer:
        response = wire.ModelInferResponse(
            model_name=request.model_name, model_version=str(loaded.slot.number), id=request.id
        )
        total, raw = 0, []
        for spec in tensors.outputs:
            array = rounded(outputs[spec.name], spec, loaded.serving.output_decimals)
            total += encoded_bytes(array, spec.datatype)
            if total > self._limits.reply_bytes:
                raise Exhausted("the reply is too large", reason=Reason.REQUEST_TOO_LARGE)
            output = response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=array.shape)
            if tensors.raw_reply:
                raw.append(view_raw(array, spec.datatype))
            elif spec.datatype.contents is not None:
                getattr(output.contents, spec.datatype.contents).extend(encode_typed(array, spec.datatype))
        return Answer(response, raw)


def _is_plain(spec: TensorSpec) -> bool:
    return spec.datatype.width is not None


def rounded(array: Array, spec: TensorSpec, decimals: int | None) -> Array:
    """The array with so many decimals, where it is floating point and the model asks for it."""
    if decimals is None or array.dtype.kind != "f" or spec.datatype.width is None:
        return array
    return np.round(array, decimals)


def _error_text(error: Exception) -> str:
    """What a stream tells of an error: constant text and field names, as a status would."""
    if not isinstance(error, CasemateError):
        _LOGGER.error("a prediction on a stream failed", exc_info=error)
        return InternalError.public_message
    if isinstance(error, InternalError):
        _LOGGER.error("a prediction on a stream failed", exc_info=error)
    fields = "; ".join(f"{violation.field}: {violation.description}" for violation in error.violations)
    return f"[{error.code}] {error.public_message}" + (f" ({fields})" if fields else "")
