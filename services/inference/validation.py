"""Checks a prediction request against what the model declares, before numpy sees it.

All sizes are Python integers, so no product overflows; nothing is allocated by
a shape that a client wrote before its bytes were counted. Texts are constant:
they name fields by place and never repeat what was sent. NaN and infinities
pass here: whether a model takes them is its own configuration (`serving`).

If this fails: numpy or the model sees a tensor of the wrong size and raises,
which is an INTERNAL error of one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import FieldViolation, InvalidRequest
from services.inference.tensors import (
    BYTES_ELEMENT_COST,
    CONTENTS_FIELDS,
    DATATYPES,
    TYPED_ELEMENT_COST,
    Datatype,
    TensorSpec,
    ValuesInvalid,
    decode_raw,
    decode_typed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casemate.open_inference.v2 import open_inference_pb2 as wire
    from services.inference.tensors import Array
    from services.inference.wire_guard import InferRequest

    InputTensor = wire.ModelInferRequest.InferInputTensor

MAX_DIMENSION = 2**31 - 1
MAX_TENSORS = 256
MAX_PARAMETERS = 64
MAX_ID_BYTES = 256
MAX_VIOLATIONS = 16

# Parameters that ask for something which is not served; everything else unknown is ignored, as Triton does.
_REFUSED_PARAMETERS = (
    ("sequence_id", "sequences are not served"),
    ("sequence_start", "sequences are not served"),
    ("sequence_end", "sequences are not served"),
)
# What is honoured must be legible: a limit that is silently none is worse than a refusal.
_WHOLE_PARAMETERS = ("priority", "timeout")
_WHOLE = ("int64_param", "uint64_param")
_REFUSED_TENSOR_PARAMETERS = (
    ("shared_memory_region", "shared memory is not served"),
    ("classification", "classification is not served"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on one request, beyond the server's message size.

    Attributes:
        elements: of all input tensors together.
        object_bytes: of memory for what becomes Python objects on the way, BYTES and typed contents: a wire
            byte of them costs tens of bytes. Judged by their number before any is made.
        reply_bytes: of all output tensors together.
    """

    elements: int = 64 * 1024 * 1024
    object_bytes: int = 64 * 1024 * 1024
    reply_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tensors:
    """A request whose tensors fit the model: arrays by name, the outputs asked for, and the reply's form."""

    inputs: Mapping[str, Array]
    outputs: tuple[TensorSpec, ...]
    raw_reply: bool
    rows: int


class _Violations:
    """Collects what is wrong, so that a caller learns all of it at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        if len(self._found) < MAX_VIOLATIONS:
            self._found.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        if self._found:
            raise InvalidRequest("tensors do not fit the model", violations=tuple(self._found))


def read_tensors(
    request: InferRequest,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    limits: Limits,
) -> Tensors:
    """Returns the request's tensors as arrays, once everything about them was checked.

    Raises:
        InvalidRequest: with every violation found, up to `MAX_VIOLATIONS`.
    """
    plain = _read_plain(request, inputs=inputs, outputs=outputs, limits=limits)
    if plain is not None:
        return plain
    found = _Violations()
    _check_counts(request, found)
    found.raise_if_any()  # what follows loops over what was counted
    _check_parameters(request, found)
    _check_names(request, inputs, found)
    wanted = _requested_outputs(request, outputs, found)
    found.raise_if_any()
    by_name = {spec.name: spec for spec in inputs}
    counts = [
        _check_shape(tensor, by_name[tensor.name], f"inputs[{index}]", found)
        for index, tensor in enumerate(request.inputs)
    ]
    raw = bool(request.raw_input_contents)
    if sum(counts) > limits.elements:
        found.add("inputs", "hold more elements than one request may")
    _check_objects(request, counts, limits.object_bytes, found)
    found.raise_if_any()
    _check_contents(request, counts, found)
    found.raise_if_any()
    arrays = dict(_decode(request, counts, found))
    found.raise_if_any()
    only_raw = any(spec.datatype.contents is None for spec in wanted)
    first = request.inputs[0].shape if request.inputs else ()
    return Tensors(arrays, wanted, raw or only_raw or not request.inputs, int(first[0]) if first else 1)


def _read_plain(
    request: InferRequest, *, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: Limits
) -> Tensors | None:
    """The tensors of a request like nearly all: raw numbers, each input once in the model's order, and no wishes.

    None for every other one, good or bad: it is looked at closer, and what is wrong with it is said.
    """
    given = request.inputs
    raw: Sequence[bytes | memoryview] = request.raw_input_contents
    if not (0 < len(inputs) == len(given) == len(raw)) or request.outputs or request.parameters:
        return None
    if len(request.id) > MAX_ID_BYTES:
        return None
    arrays: dict[str, Array] = {}
    elements = 0
    for tensor, spec, contents in zip(given, inputs, raw, strict=True):
        count = _plain_elements(tensor, spec, contents)
        if not count:
            return None
        arrays[spec.name] = np.frombuffer(contents, dtype=spec.datatype.dtype).reshape(tensor.shape)
        elements += count
    if elements > limits.elements:
        return None
    shape = given[0].shape
    return Tensors(arrays, tuple(outputs), raw_reply=True, rows=int(shape[0]) if shape else 1)


def _plain_elements(tensor: InputTensor, spec: TensorSpec, contents: bytes | memoryview) -> int:
    """How many elements a tensor has that fits its input in every way; 0 for any other."""
    datatype, shape = spec.datatype, tensor.shape
    if tensor.name != spec.name or tensor.datatype != datatype.name or len(shape) != len(spec.shape):
        return 0
    if datatype.width is None or datatype.name == "BOOL" or tensor.parameters or tensor.HasField("contents"):
        return 0
    count = 1
    for dimension, declared in zip(shape, spec.shape, strict=True):
        if not 1 <= dimension <= MAX_DIMENSION or declared not in (-1, dimension):
            return 0
        count *= int(dimension)
    return count if len(contents) == count * datatype.width else 0


def _check_counts(request: InferRequest, found: _Violations) -> None:
    if len(request.inputs) > MAX_TENSORS:
        found.add("inputs", "more tensors than one request may hold")
    if len(request.outputs) > MAX_TENSORS:
        found.add("outputs", "more tensors than one request may ask for")
    if len(request.parameters) > MAX_PARAMETERS:
        found.add("parameters", "more parameters than one request may hold")
    if len(request.id) > MAX_ID_BYTES:
        found.add("id", "longer than 256 characters")
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        found.add("raw_input_contents", "must hold one entry per input")


def _check_parameters(request: InferRequest, found: _Violations) -> None:
    if request.parameters:
        for name, description in _REFUSED_PARAMETERS:
            if name in request.parameters:
                found.add("parameters", description)
        for name in _WHOLE_PARAMETERS:
            if name in request.parameters and request.parameters[name].WhichOneof("parameter_choice") not in _WHOLE:
                found.add("parameters", "priority and timeout are whole numbers")
    for index, tensor in enumerate(request.inputs):
        _check_tensor_parameters(tensor.parameters, f"inputs[{index}]", found)
    for index, output in enumerate(request.outputs):
        _check_tensor_parameters(output.parameters, f"outputs[{index}]", found)


def _check_tensor_parameters(parameters: Mapping[str, object], field: str, found: _Violations) -> None:
    if not parameters:
        return
    for name, description in _REFUSED_TENSOR_PARAMETERS:
        if name in parameters:
            found.add(f"{field}.parameters", description)


def _check_names(request: InferRequest, specs: Sequence[TensorSpec], found: _Violations) -> None:
    missing = {spec.name for spec in specs}
    known = frozenset(missing)
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in known:
            found.add(f"inputs[{index}].name", "is no input of the model")
        elif tensor.name not in missing:
            found.add(f"inputs[{index}].name", "is given twice")
        missing.discard(tensor.name)
    for name in sorted(missing):  # names from the signed model, not from the request
        found.add(f"inputs.{name}", "is missing")


def _requested_outputs(
    request: InferRequest, specs: Sequence[TensorSpec], found: _Violations
) -> tuple[TensorSpec, ...]:
    if not request.outputs:
        return tuple(specs)
    by_name = {spec.name: spec for spec in specs}
    wanted: dict[str, TensorSpec] = {}
    for index, output in enumerate(request.outputs):
        spec = by_name.get(output.name)
        if spec is None:
            found.add(f"outputs[{index}].name", "is no output of the model")
        elif output.name in wanted:
            found.add(f"outputs[{index}].name", "is asked for twice")
        else:
            wanted[output.name] = spec
    return tuple(wanted.values())


def _check_shape(tensor: InputTensor, spec: TensorSpec, field: str, found: _Violations) -> int:
    if DATATYPES.get(tensor.datatype) is not spec.datatype:
        found.add(f"{field}.datatype", "is not the datatype of the model's input")
    if len(tensor.shape) != len(spec.shape):
        found.add(f"{field}.shape", "has not the rank of the model's input")
        return 0
    count = 1
    for given, declared in zip(tensor.shape, spec.shape, strict=True):
        if not 1 <= given <= MAX_DIMENSION:
            found.add(f"{field}.shape", "dimensions must be 1 to 2147483647")
            return 0
        if declared not in (-1, given):
            found.add(f"{field}.shape", "is not the shape of the model's input")
            return 0
        count *= int(given)
    return count


def _check_objects(request: InferRequest, counts: Sequence[int], left: int, found: _Violations) -> None:
    raw = request.raw_input_contents
    for index, (tensor, count) in enumerate(zip(request.inputs, counts, strict=True)):
        if tensor.datatype == "BYTES":
            left -= count * BYTES_ELEMENT_COST + (len(raw[index]) if raw else 0)
        elif not raw:
            left -= count * TYPED_ELEMENT_COST
        if left < 0:
            field = f"raw_input_contents[{index}]" if raw else f"inputs[{index}].contents"
            found.add(field, "holds more BYTES or typed elements than one request may")
            return


def _check_contents(request: InferRequest, counts: Sequence[int], found: _Violations) -> None:
    raw = request.raw_input_contents
    for index, (tensor, count) in enumerate(zip(request.inputs, counts, strict=True)):
        datatype = DATATYPES[tensor.datatype]
        if raw:
            if tensor.HasField("contents"):
                found.add(f"inputs[{index}].contents", "must not be set beside raw_input_contents")
            if datatype.width is not None and len(raw[index]) != count * datatype.width:
                found.add(f"raw_input_contents[{index}]", "is not as long as datatype and shape say")
        elif datatype.contents is None:
            found.add(f"inputs[{index}].contents", "this datatype travels in raw_input_contents only")
        elif [name for name in CONTENTS_FIELDS if len(getattr(tensor.contents, name))] != [datatype.contents]:
            found.add(f"inputs[{index}].contents", "must hold the one field of the datatype")
        elif len(getattr(tensor.contents, datatype.contents)) != count:
            found.add(f"inputs[{index}].contents", "is not as long as the shape says")


def _decode(request: InferRequest, counts: Sequence[int], found: _Violations) -> Iterator[tuple[str, Array]]:
    raw = request.raw_input_contents
    for index, (tensor, count) in enumerate(zip(request.inputs, counts, strict=True)):
        datatype = DATATYPES[tensor.datatype]
        try:
            if raw:
                yield tensor.name, decode_raw(raw[index], datatype, tensor.shape, count)
            else:
                yield tensor.name, decode_typed(_typed(tensor, datatype), datatype, tensor.shape)
        except ValuesInvalid as error:
            found.add(f"raw_input_contents[{index}]" if raw else f"inputs[{index}].contents", str(error))


def _typed(tensor: InputTensor, datatype: Datatype) -> Sequence[object]:
    field = datatype.contents
    values: Sequence[object] = getattr(tensor.contents, field) if field else ()
    return values
