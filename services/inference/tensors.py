"""Tensors on the wire and in numpy: datatypes, decoding after validation, encoding.

Decoding trusts that `validation` has compared datatype, shape and length; it
adds no check but those that only the values can fail (BOOL bytes, text, narrow
integers).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

_LENGTH = struct.Struct("<I")
_WORTH_A_VIEW = 64 * 1024
_AT_ONCE = 4096

BYTES_ELEMENT_COST = 64
"""Memory that one BYTES element takes beside its payload: a Python string and the pointer to it."""

TYPED_ELEMENT_COST = 32
"""Memory that one number in typed contents takes, which may be one byte on the wire."""


class ValuesInvalid(Exception):
    """Values that no tensor of the datatype can hold. The text is constant and may leave the process."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One Open Inference datatype.

    Attributes:
        name: as the protocol writes it.
        width: bytes per element; None for BYTES, whose elements carry their length.
        dtype: the numpy type, little-endian as raw contents are.
        contents: the field of InferTensorContents, None where only raw contents exist.
        config: Triton's `DataType` by name.
        onnx: ONNX Runtime's name of the type.
    """

    name: str
    width: int | None
    dtype: np.dtype[Any]
    contents: str | None
    config: str
    onnx: str


def _datatype(name: str, code: str, contents: str | None, onnx: str) -> Datatype:
    dtype = np.dtype(code)
    variable = name == "BYTES"
    config = "TYPE_STRING" if variable else f"TYPE_{name}"
    return Datatype(name, None if variable else dtype.itemsize, dtype, contents, config, f"tensor({onnx})")


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        _datatype("BOOL", "?", "bool_contents", "bool"),
        _datatype("UINT8", "u1", "uint_contents", "uint8"),
        _datatype("UINT16", "<u2", "uint_contents", "uint16"),
        _datatype("UINT32", "<u4", "uint_contents", "uint32"),
        _datatype("UINT64", "<u8", "uint64_contents", "uint64"),
        _datatype("INT8", "i1", "int_contents", "int8"),
        _datatype("INT16", "<i2", "int_contents", "int16"),
        _datatype("INT32", "<i4", "int_contents", "int32"),
        _datatype("INT64", "<i8", "int64_contents", "int64"),
        _datatype("FP16", "<f2", None, "float16"),
        _datatype("BF16", "<u2", None, "bfloat16"),
        _datatype("FP32", "<f4", "fp32_contents", "float"),
        _datatype("FP64", "<f8", "fp64_contents", "double"),
        _datatype("BYTES", "O", "bytes_contents", "string"),
    )
}
"""What is served. numpy has no BF16: its arrays hold the 16 bits of each element, uninterpreted."""

BY_ONNX = {datatype.onnx: datatype for datatype in DATATYPES.values()}

CONTENTS_FIELDS = tuple(sorted({datatype.contents for datatype in DATATYPES.values() if datatype.contents}))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model declares of one input or output; -1 stands for a free dimension."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


def walk_bytes(raw: bytes | memoryview, count: int) -> None:
    """Checks that `raw` is exactly `count` length-prefixed elements, building nothing.

    Raises:
        ValuesInvalid: too short, too long, or a length that leaves the buffer.
    """
    position, end = 0, len(raw)
    for _ in range(count):
        if end - position < _LENGTH.size:
            raise ValuesInvalid("holds fewer elements than the shape says")
        position += _LENGTH.size + _LENGTH.unpack_from(raw, position)[0]
        if position > end:
            raise ValuesInvalid("has an element longer than what is left")
    if position != end:
        raise ValuesInvalid("holds more than the shape says")


def decode_raw(raw: bytes | memoryview, datatype: Datatype, shape: Sequence[int], count: int) -> Array:
    """The array over `raw`, without a copy where the datatype has a width.

    Raises:
        ValuesInvalid: the values are not of the datatype.
    """
    if datatype.width is not None:
        if datatype.name == "BOOL" and bytes(raw).strip(b"\x00\x01"):
            raise ValuesInvalid("BOOL elements must be 0 or 1")
        return np.frombuffer(raw, dtype=datatype.dtype).reshape(shape)
    walk_bytes(raw, count)
    array = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(raw, position)[0]
        array[index] = _text(bytes(raw[start:position]))
    return array.reshape(shape)


def decode_typed(values: Sequence[Any], datatype: Datatype, shape: Sequence[int]) -> Array:
    """The array of typed contents.

    Raises:
        ValuesInvalid: a value does not fit the datatype.
    """
    if datatype.width is None:
        array = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            array[index] = _text(value)
        return array.reshape(shape)
    # The wire field is wider than the narrow integers; numpy would wrap what does not fit.
    if datatype.dtype.kind in "iu" and datatype.width < 4:
        wide = np.fromiter(values, dtype=np.int64, count=len(values))
        limits = np.iinfo(datatype.dtype)
        if int(wide.min()) < limits.min or int(wide.max()) > limits.max:
            raise ValuesInvalid("has a value out of the datatype's range")
        return wide.astype(datatype.dtype).reshape(shape)
    return np.fromiter(values, dtype=datatype.dtype, count=len(values)).reshape(shape)


def encode_raw(array: Array, datatype: Datatype) -> bytes:
    """The array row-major, little-endian; BYTES with their lengths."""
    if datatype.width is not None:
        return np.ascontiguousarray(array, dtype=datatype.dtype).tobytes()
    joined = bytearray()
    for element in array.reshape(-1):
        encoded = _encoded(element)
        joined += _LENGTH.pack(len(encoded))
        joined += encoded
    return bytes(joined)


def encoded_bytes(array: Array, datatype: Datatype) -> int:
    """How many bytes `encode_raw` would make: of BYTES what the elements hold, not the pointers to them."""
    if datatype.width is not None:
        return int(array.size) * datatype.width
    return sum(_LENGTH.size + _encoded_length(element) for element in array.reshape(-1))


def view_raw(array: Array, datatype: Datatype) -> bytes | memoryview:
    """As `encode_raw`; a large array is shown where it lies and not copied."""
    if datatype.width is None or array.nbytes < _WORTH_A_VIEW:
        return encode_raw(array, datatype)
    shown: memoryview = np.ascontiguousarray(array, dtype=datatype.dtype).reshape(-1).view(np.uint8).data
    return shown


def encode_typed(array: Array, datatype: Datatype) -> Iterator[Any]:
    """The elements as typed contents take them; few of them are Python objects at a time."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        piece = flat[start : start + _AT_ONCE]
        yield from piece.tolist() if datatype.width is not None else map(_encoded, piece)


def _text(value: bytes) -> str:
    # ONNX strings are UTF-8; ONNX Runtime takes them as text.
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValuesInvalid("BYTES elements must be UTF-8") from error


def _encoded_length(element: object) -> int:
    if isinstance(element, str) and element.isascii():
        return len(element)
    return len(_encoded(element))


def _encoded(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
