"""A model that runs on a server behind ours: any that speaks the Open Inference Protocol.

Requests are validated against the tensors of the signed `upstream.json` before
they go on, and answers before they come back. No token and no name of a caller
goes along.

If this fails: what the back end computes is the back end's word; only the
tensors' form is checked here. Who controls it controls these predictions.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from casemate.errors import (
    DeadlineExceeded,
    Exhausted,
    FieldViolation,
    InternalError,
    InvalidRequest,
    Unavailable,
)
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.tensors import DATATYPES, ValuesInvalid, decode_raw, decode_typed, encode_raw
from services.inference.upstream_file import invalid_upstream, read_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from services.inference.backends import Backends
    from services.inference.tensors import Array, TensorSpec
    from services.inference.upstream_file import UpstreamModel

_SERVICE = "/inference.GRPCInferenceService/"
_MAX_DIMENSION = 2**31 - 1
_RETRY = timedelta(seconds=1)
_LOGGER = logging.getLogger(__name__)


class UpstreamInstance:
    """One model on one back end; the same interface as a model in this process.

    Args:
        model: what `upstream.json` says.
        channel: to the back end.
        timeout: of each call.

    Raises:
        InvalidRequest: reason MODEL_INVALID: the back end has the model with other tensors.
        Unavailable: the back end does not answer, or does not have the model ready.
    """

    def __init__(self, model: UpstreamModel, *, channel: grpc.Channel, timeout: timedelta) -> None:
        self._model = model
        self._timeout = timeout.total_seconds()
        self._infer = _method(channel, "ModelInfer")
        self._require_ready(_method(channel, "ModelReady"), _method(channel, "ModelMetadata"))

    @property
    def platform(self) -> str:
        """That it is no model of this process."""
        return "open_inference"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the signed file says that the model takes."""
        return self._model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the signed file says that the model gives."""
        return self._model.outputs

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Has the back end compute all outputs.

        Raises:
            InvalidRequest: the back end does not take the values.
            Exhausted: it has too much to do.
            Unavailable: it does not answer.
            DeadlineExceeded: it did not within its timeout.
            InternalError: it failed, or its answer is not what the signed file says.
        """
        request = wire.ModelInferRequest(model_name=self._model.model, model_version=self._model.version)
        for spec in self._model.inputs:
            array = inputs[spec.name]
            request.inputs.add(name=spec.name, datatype=spec.datatype.name, shape=array.shape)
            request.raw_input_contents.append(encode_raw(array, spec.datatype))
        for spec in self._model.outputs:
            request.outputs.add(name=spec.name)
        response = self._call(self._infer, request)
        try:
            return _read(response, self._model.outputs)
        except ValuesInvalid as error:
            raise InternalError(f"back end {self._model.backend} answered wrongly: {error}") from error

    def _require_ready(self, ready: Callable[..., Any], metadata: Callable[..., Any]) -> None:
        name, version = self._model.model, self._model.version
        if not self._call(ready, wire.ModelReadyRequest(name=name, version=version)).ready:
            raise Unavailable(f"back end {self._model.backend} does not have the model ready", retry_after=_RETRY)
        told = self._call(metadata, wire.ModelMetadataRequest(name=name, version=version))
        # A back end that declares nothing is held to the signed file at each answer.
        for kind, specs in (("inputs", self._model.inputs), ("outputs", self._model.outputs)):
            declared = {tensor.name: tensor for tensor in getattr(told, kind)}
            if declared and not _agree(declared, specs, all_of_them=kind == "inputs"):
                raise invalid_upstream(kind, "are not those that the back end declares")

    def _call(self, method: Callable[..., Any], request: object) -> Any:  # noqa: ANN401  # a message
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            self._refuse(error)

    def _refuse(self, error: grpc.RpcError) -> NoReturn:
        code = error.code()
        # Its text stays here: it may hold anything.
        _LOGGER.warning("back end %s: %s: %s", self._model.backend, code.name, error.details())
        what = f"back end {self._model.backend}: {code.name}"
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            violation = FieldViolation("inputs", "the model does not take these values")
            raise InvalidRequest(what, violations=(violation,)) from error
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise Exhausted(what, retry_after=_RETRY) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceeded(what) from error
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
            raise Unavailable(what, retry_after=_RETRY) from error
        raise InternalError(what) from error


def build_upstream(data: bytes, *, tenant: str, backends: Backends) -> UpstreamInstance:
    """The instance that a tenant's `upstream.json` names.

    Raises:
        InvalidRequest: reason MODEL_INVALID: the file is wrong, or names no back end that the tenant may use.
        Unavailable: the back end does not answer, or does not have the model ready.
    """
    model = read_upstream(data)
    found = backends.find(model.backend, tenant=tenant)
    if found is None:
        raise invalid_upstream("backend", "is no back end that this tenant's models may name")
    backend, channel = found
    return UpstreamInstance(model, channel=channel, timeout=backend.timeout)


def _read(response: wire.ModelInferResponse, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The arrays of an answer, checked as a client's request is: nothing is allocated by a shape alone."""
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ValuesInvalid("raw contents are not one per output")
    places = {output.name: index for index, output in enumerate(response.outputs)}
    if len(places) != len(response.outputs):
        raise ValuesInvalid("an output is there twice")
    arrays: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in places:
            raise ValuesInvalid("an output is missing")
        index = places[spec.name]
        output = response.outputs[index]
        count = _count(output.datatype, output.shape, spec)
        if raw:
            if spec.datatype.width is not None and len(raw[index]) != count * spec.datatype.width:
                raise ValuesInvalid("an output is not as long as datatype and shape say")
            arrays[spec.name] = decode_raw(raw[index], spec.datatype, output.shape, count)
        else:
            values = getattr(output.contents, spec.datatype.contents) if spec.datatype.contents else ()
            if len(values) != count:
                raise ValuesInvalid("an output is not as long as its shape says")
            arrays[spec.name] = decode_typed(values, spec.datatype, output.shape)
    return arrays


def _count(datatype: str, shape: Sequence[int], spec: TensorSpec) -> int:
    if DATATYPES.get(datatype) is not spec.datatype:
        raise ValuesInvalid("an output has not its datatype")
    if len(shape) != len(spec.shape):
        raise ValuesInvalid("an output has not its rank")
    for given, declared in zip(shape, spec.shape, strict=True):
        if not 0 <= given <= _MAX_DIMENSION or declared not in (-1, given):
            raise ValuesInvalid("an output has not its shape")
    return math.prod(shape)


def _agree(declared: Mapping[str, Any], specs: Sequence[TensorSpec], *, all_of_them: bool) -> bool:
    if all_of_them and set(declared) != {spec.name for spec in specs}:
        return False
    return all(
        spec.name in declared
        and declared[spec.name].datatype == spec.datatype.name
        and _fits(spec.shape, tuple(declared[spec.name].shape))
        for spec in specs
    )


def _fits(signed: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(signed) == len(declared) and all(
        -1 in (ours, theirs) or ours == theirs for ours, theirs in zip(signed, declared, strict=True)
    )


def _method(channel: grpc.Channel, name: str) -> Callable[..., Any]:
    return channel.unary_unary(
        _SERVICE + name,
        request_serializer=getattr(wire, f"{name}Request").SerializeToString,
        response_deserializer=getattr(wire, f"{name}Response").FromString,
    )
