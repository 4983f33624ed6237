"""Runs models that take or give BF16, which ONNX Runtime does not hand over as numpy arrays.

Such an array holds the elements' 16 bits. ONNX Runtime's own values carry the
type beside them, on the way in and on the way out.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime  # instance.py and this module give it the types it lacks

from services.inference.tensors import DATATYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from services.inference.tensors import Array, TensorSpec

_BF16 = DATATYPES["BF16"]
_ONNX_BFLOAT16 = 16  # TensorProto.DataType.BFLOAT16


def has_brain_floats(specs: Iterable[TensorSpec]) -> bool:
    """Whether a tensor of the model is BF16."""
    return any(spec.datatype is _BF16 for spec in specs)


def run_with_brain_floats(
    session: Any,  # noqa: ANN401  # onnxruntime ships no types
    *,
    inputs: Mapping[str, Array],
    takes: Sequence[TensorSpec],
    gives: Sequence[TensorSpec],
    options: Any = None,  # noqa: ANN401
) -> list[Array]:
    """All outputs in the model's order; BF16 ones as their bits."""
    values = {spec.name: _value(inputs[spec.name], spec) for spec in takes}
    results = session.run_with_ort_values(None, values, options)
    return [_array(result, spec) for result, spec in zip(results, gives, strict=True)]


def _value(array: Array, spec: TensorSpec) -> Any:  # noqa: ANN401  # onnxruntime ships no types
    if spec.datatype is not _BF16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)


def _array(value: Any, spec: TensorSpec) -> Array:  # noqa: ANN401  # onnxruntime ships no types
    if spec.datatype is not _BF16:
        array: Array = value.numpy()
        return array
    # Copied while `value` holds the memory.
    held = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(held, dtype=_BF16.dtype).reshape(value.shape())
