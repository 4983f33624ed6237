"""NaN and infinities in tensors: which requests hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.inference.tensors import Array, TensorSpec

_BF16_EXPONENT = np.uint16(0x7F80)


def require_finite(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Returns when no input holds NaN or an infinity. Denormal numbers are numbers.

    Raises:
        InvalidRequest: names the inputs that do, by the model's names.
    """
    found = tuple(
        FieldViolation(f"inputs.{spec.name}", "must hold neither NaN nor infinities: the model does not take them")
        for spec in specs
        if not _finite(inputs[spec.name], spec)
    )
    if found:
        raise InvalidRequest("NaN or infinities", violations=found)


def takes_nan(spec: TensorSpec) -> bool:
    """Whether a tensor can hold NaN at all."""
    return spec.datatype.name == "BF16" or spec.datatype.dtype.kind == "f"


def filled_with_nan(array: Array, spec: TensorSpec) -> Array:
    """An array of the same shape, all NaN."""
    if spec.datatype.name == "BF16":
        return np.full_like(array, 0x7FC0)
    return np.full_like(array, np.nan)


def _finite(array: Array, spec: TensorSpec) -> bool:
    if spec.datatype.name == "BF16":
        return not bool(((array & _BF16_EXPONENT) == _BF16_EXPONENT).any())
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
