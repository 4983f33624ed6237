"""`upstream.json`: a version that runs on a back end, signed in place of a model's bytes.

It says which back end, which model there, and which tensors:

    {"backend": "triton", "model": "resnet", "version": "3",
     "inputs":  [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
     "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}]}
"""

from __future__ import annotations

from dataclasses import dataclass

from casemate.errors import FieldViolation, InvalidRequest, Reason
from casemate.signing.strict_json import parse_object
from services.inference.names import UPSTREAM_FILE
from services.inference.tensors import DATATYPES, TensorSpec

_MEMBERS = frozenset({"backend", "model", "version", "inputs", "outputs"})
_TENSOR = frozenset({"name", "datatype", "shape"})
_MAX_VALUES = 4096
_MAX_TENSORS = 256
_MAX_RANK = 16
_MAX_DIMENSION = 2**31 - 1
_MAX_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamModel:
    """What `upstream.json` says."""

    backend: str
    model: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_upstream(data: bytes) -> UpstreamModel:
    """The model that `upstream.json` names.

    Raises:
        InvalidRequest: reason MODEL_INVALID: the file is not exactly what it may be.
    """
    try:
        members = parse_object(data, field=UPSTREAM_FILE, maximum_items=_MAX_VALUES)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), reason=Reason.MODEL_INVALID, violations=error.violations) from error
    if set(members) - {"version"} != _MEMBERS - {"version"}:
        raise invalid_upstream("", "must hold backend, model, inputs and outputs, and may hold version")
    return UpstreamModel(
        backend=_text(members["backend"], "backend"),
        model=_text(members["model"], "model"),
        version=_text(members["version"], "version") if "version" in members else "",
        inputs=_specs(members["inputs"], "inputs"),
        outputs=_specs(members["outputs"], "outputs"),
    )


def _specs(given: object, field: str) -> tuple[TensorSpec, ...]:
    if not isinstance(given, list) or not 1 <= len(given) <= _MAX_TENSORS:
        raise invalid_upstream(field, "must list 1 to 256 tensors")
    specs = tuple(_spec(tensor, f"{field}[{index}]") for index, tensor in enumerate(given))
    if len({spec.name for spec in specs}) != len(specs):
        raise invalid_upstream(field, "names a tensor twice")
    return specs


def _spec(given: object, field: str) -> TensorSpec:
    if not isinstance(given, dict) or set(given) != _TENSOR:
        raise invalid_upstream(field, "must hold name, datatype and shape")
    datatype = DATATYPES.get(_text(given["datatype"], f"{field}.datatype"))
    if datatype is None:
        raise invalid_upstream(f"{field}.datatype", "is no datatype of the protocol")
    shape = given["shape"]
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_dimension(size) for size in shape):
        raise invalid_upstream(f"{field}.shape", "must list at most 16 dimensions, each -1 or 1 to 2147483647")
    return TensorSpec(_text(given["name"], f"{field}.name"), datatype, tuple(shape))


def _is_dimension(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and (size == -1 or 1 <= size <= _MAX_DIMENSION)


def _text(value: object, field: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_NAME or not value.isprintable():
        raise invalid_upstream(field, "must be 1 to 256 printable characters")
    return value


def invalid_upstream(field: str, description: str) -> InvalidRequest:
    """The refusal of one member of `upstream.json`."""
    where = f"{UPSTREAM_FILE}.{field}" if field else UPSTREAM_FILE
    return InvalidRequest(
        f"{where} {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation(where, description),),
    )
