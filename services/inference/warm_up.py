"""Runs a model's own samples before it is ready, and proves that its rows may share a run.

The samples were signed with the model. A model that asks to be batched is run
with a sample's first row alone, beside other rows, and beside rows of NaN where
it takes them; the row's answer must stay the same to the last bit. So an answer
never depends on who else asked, and a request of NaN harms nobody else's.

If this fails: a model whose rows mix is batched, and callers get answers that
others' rows coloured. Row counts are compared at each run all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import FieldViolation, InvalidRequest, Reason
from services.inference.non_finite import filled_with_nan, takes_nan
from services.inference.serving import invalid_serving
from services.inference.tensors import ValuesInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.inference.instance import Instance
    from services.inference.serving import Sample, Serving
    from services.inference.tensors import Array, TensorSpec

_MATES = (2, 3, 8)


def warm_up(instance: Instance, serving: Serving) -> bool:
    """Runs every sample. True when a lone row has to be run twice over to answer as it does beside others.

    ONNX Runtime multiplies one row by another routine than several, which may
    round the last bit otherwise.

    Raises:
        InvalidRequest: reason MODEL_INVALID: a sample does not fit or does not run, or the model
            is to be batched and its rows do not stay apart.
    """
    samples = [read_sample(sample, instance, index) for index, sample in enumerate(serving.warm_up)]
    for index, inputs in enumerate(samples):
        _run(instance, inputs, f"warm_up[{index}]")
    if serving.batching is None:
        return False
    _require_rows(instance)
    sizes = sorted({*_MATES, serving.batching.max_rows})
    padded = [_rows_stay_apart(instance, serving, inputs, sizes) for inputs in samples]
    return any(padded)


def read_sample(sample: Sample, instance: Instance, index: int) -> dict[str, Array]:
    """The sample as arrays.

    Raises:
        InvalidRequest: reason MODEL_INVALID: it does not fit the model's inputs.
    """
    where = f"warm_up[{index}].inputs"
    if set(sample.inputs) != {spec.name for spec in instance.inputs}:
        raise invalid_serving(where, "must name exactly the model's inputs")
    return {spec.name: _array(spec, *sample.inputs[spec.name], where) for spec in instance.inputs}


def _array(spec: TensorSpec, shape: tuple[int, ...], values: tuple[object, ...], where: str) -> Array:
    fits = len(shape) == len(spec.shape) and all(
        declared in (-1, given) for given, declared in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise invalid_serving(f"{where}.{spec.name}.shape", "is not the shape of the model's input")
    try:
        return _typed(spec, values).reshape(shape)
    except (ValueError, TypeError, OverflowError, ValuesInvalid) as error:
        raise invalid_serving(f"{where}.{spec.name}.values", "are not of the input's datatype") from error


def _typed(spec: TensorSpec, values: tuple[object, ...]) -> Array:
    kind, wanted = spec.datatype.dtype.kind, (int, float)
    if spec.datatype.width is None:
        return np.array([_of(value, (str,)) for value in values], dtype=object)
    if spec.datatype.name == "BF16":
        floats = np.array([_of(value, wanted) for value in values], dtype="<f4")
        return (floats.view("<u4") >> 16).astype("<u2")
    if kind == "b":
        return np.array([_of(value, (bool,)) for value in values], dtype=bool)
    return np.array([_of(value, wanted if kind == "f" else (int,)) for value in values], dtype=spec.datatype.dtype)


def _of(value: object, types: tuple[type, ...]) -> object:
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValuesInvalid("another JSON type than the datatype's")
    return value


def _require_rows(instance: Instance) -> None:
    if any(not spec.shape or spec.shape[0] != -1 for spec in (*instance.inputs, *instance.outputs)):
        raise invalid_serving("batching", "needs a free first dimension in every input and output of the model")


def _rows_stay_apart(instance: Instance, serving: Serving, sample: Mapping[str, Array], sizes: list[int]) -> bool:
    one = {name: array[:1] for name, array in sample.items()}
    alone = _first_row(instance, one)
    beside = _first_row(instance, {name: np.repeat(array, 2, axis=0) for name, array in one.items()})
    mates = [sample]
    if not serving.refuse_non_finite:
        mates.append(
            {
                spec.name: filled_with_nan(sample[spec.name], spec) if takes_nan(spec) else sample[spec.name]
                for spec in instance.inputs
            }
        )
    for rows in sizes:
        for others in mates:
            shared = {name: _among(array, others[name], rows) for name, array in one.items()}
            if _first_row(instance, shared) != beside or _last_row(instance, shared, rows) != beside:
                raise invalid_serving("batching", "the answer to a row changes with the rows beside it")
    return alone != beside


def _among(row: Array, others: Array, rows: int) -> Array:
    """`rows` rows: the row first and last, and others between."""
    between = np.resize(others, (max(0, rows - 2), *row.shape[1:]))
    return np.concatenate((row, between, row))


def _first_row(instance: Instance, inputs: Mapping[str, Array]) -> list[bytes]:
    return [_bits(array[:1]) for array in _answers(instance, inputs)]


def _last_row(instance: Instance, inputs: Mapping[str, Array], rows: int) -> list[bytes]:
    return [_bits(array[rows - 1 : rows]) for array in _answers(instance, inputs)]


def _answers(instance: Instance, inputs: Mapping[str, Array]) -> list[Array]:
    rows = {len(array) for array in inputs.values()}
    outputs = _run(instance, inputs, "batching")
    arrays = [outputs[spec.name] for spec in instance.outputs]
    if any(array.ndim == 0 or {len(array)} != rows for array in arrays):
        raise invalid_serving("batching", "the model does not answer row by row")
    return arrays


def _bits(array: Array) -> bytes:
    return repr(array.tolist()).encode() if array.dtype == object else array.tobytes()


def _run(instance: Instance, inputs: Mapping[str, Array], where: str) -> Mapping[str, Array]:
    try:
        return instance.run(inputs)
    except Exception as error:
        raise InvalidRequest(
            f"{where}: {error}",
            reason=Reason.MODEL_INVALID,
            violations=(FieldViolation(f"serving.json.{where}", "does not run"),),
        ) from error
