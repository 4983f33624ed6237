"""Reads of an ONNX file what decides about its arithmetic: nodes, constants, and which values are whole numbers.

Only of files that `check_onnx` has walked: depth and number of parts are bounded there. Fields
that protobuf would merge are merged here too.

If this fails: see `whole_division`, which alone uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FLOAT, INT32, INT64 = 1, 6, 7  # of TensorProto.DataType
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_TYPED_VALUES = {INT32: 5, INT64: 7}  # TensorProto.int32_data and int64_data
_MOST_TYPED = 65_536


@dataclass(slots=True)
class Tensor:
    """A constant: its datatype, and its numbers where they are of 32 or 64 bits and whole."""

    name: bytes = b""
    kind: int = 0
    numbers: NDArray[np.int64] | None = None


@dataclass(slots=True)
class Attribute:
    """An attribute: one number, numbers, a tensor, or graphs; `is_callers`: whoever calls the function says which."""

    name: bytes = b""
    is_callers: bool = False
    number: int = 0
    numbers: list[int] = field(default_factory=list)
    tensor: Tensor | None = None
    graphs: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class Node:
    """One node."""

    operator: bytes = b""
    domain: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)


@dataclass(slots=True)
class Graph:
    """A graph, or the body of a function: its nodes in order, constants, and the datatypes that it says.

    `inputs` and `sparse` are names: of what it is given, and of constants that are not read.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    kinds: dict[bytes, int] = field(default_factory=dict)
    inputs: list[bytes] = field(default_factory=list)
    sparse: list[bytes] = field(default_factory=list)


def read_graphs(model: bytes) -> tuple[Graph, list[Graph]]:
    """The model's graph, and the bodies of its functions.

    Raises:
        ValueError: it is no protobuf.
    """
    main, functions = Graph(), []
    for number, value, start, end in _fields(model, 0, len(model)):
        if number == 7 and value is None:
            _read_graph(model, start, end, main)
        elif number == 25 and value is None:
            functions.append(_read_function(model, start, end))
    return main, functions


def datatype(value: int) -> int:
    """A datatype as ONNX Runtime takes it: it drops what is beyond 32 bits."""
    return value & 0xFFFFFFFF


def _read_graph(data: bytes, start: int, end: int, graph: Graph) -> None:
    for number, value, first, last in _fields(data, start, end):
        if value is not None:
            continue
        if number == 1:
            graph.nodes.append(_read_node(data, first, last))
        elif number == 5:
            graph.constants.append(_read_tensor(data, first, last))
        elif number in (11, 12, 13):
            name, kind = _read_value(data, first, last)
            if kind:
                graph.kinds[name] = kind
            if number == 11:
                graph.inputs.append(name)
        elif number == 15:
            parts = [
                _read_tensor(data, begin, close) for part, _, begin, close in _fields(data, first, last) if part == 1
            ]
            graph.sparse += [part.name for part in parts]


def _read_function(data: bytes, start: int, end: int) -> Graph:
    graph = Graph()
    for number, value, first, last in _fields(data, start, end):
        if number == 7 and value is None:
            graph.nodes.append(_read_node(data, first, last))
        elif number == 4 and value is None:
            graph.inputs.append(data[first:last])
    return graph


def _read_node(data: bytes, start: int, end: int) -> Node:
    node = Node()
    for number, value, first, last in _fields(data, start, end):
        if value is not None:
            continue
        if number == 5:
            node.attributes.append(_read_attribute(data, first, last))
            continue
        if number == 1:
            node.inputs.append(data[first:last])
        elif number == 2:
            node.outputs.append(data[first:last])
        elif number == 4:
            node.operator = data[first:last]
        elif number == 7:
            node.domain = data[first:last]
    return node


def _read_attribute(data: bytes, start: int, end: int) -> Attribute:
    attribute, graph = Attribute(), None
    for number, value, first, last in _fields(data, start, end):
        if number == 3 and value is not None:
            attribute.number = _signed(value)
        elif number == 8:
            attribute.numbers += [_signed(value)] if value is not None else list(_varints(data, first, last))
        elif value is not None:
            continue
        elif number == 1:
            attribute.name = data[first:last]
        elif number == 21:
            attribute.is_callers = True
        elif number == 5:
            # Two tensors in one field would be merged: neither of them is what is computed with.
            attribute.tensor = _read_tensor(data, first, last) if attribute.tensor is None else Tensor()
        elif number == 6:
            if graph is None:
                graph = Graph()
                attribute.graphs.append(graph)
            _read_graph(data, first, last, graph)
        elif number == 11:
            several = Graph()
            _read_graph(data, first, last, several)
            attribute.graphs.append(several)
    return attribute


def _read_value(data: bytes, start: int, end: int) -> tuple[bytes, int]:
    """Name and datatype of a value; 0 for what is no tensor, or says nothing."""
    name, kind = b"", 0
    for number, value, first, last in _fields(data, start, end):
        if number == 1 and value is None:
            name = data[first:last]
        elif number == 2 and value is None:
            for part, inner, begin, close in _fields(data, first, last):
                if part == 1 and inner is None:  # of a tensor
                    kinds = [said for place, said, _, _ in _fields(data, begin, close) if place == 1]
                    kind = datatype(kinds[-1] or 0) if kinds else kind
    return name, kind


def _read_tensor(data: bytes, start: int, end: int) -> Tensor:
    tensor, raw, typed = Tensor(), [], []
    for number, value, first, last in _fields(data, start, end):
        if number == 2 and value is not None:
            tensor.kind = datatype(value)
        elif number == 8 and value is None:
            tensor.name = data[first:last]
        elif number == 9 and value is None:
            raw.append((first, last))
        elif number in _TYPED_VALUES.values():
            typed.append((number, value, first, last))
    if tensor.kind in _TYPED_VALUES:
        tensor.numbers = _numbers(data, tensor.kind, raw, typed)
    return tensor


def _numbers(
    data: bytes, kind: int, raw: list[tuple[int, int]], typed: list[tuple[int, int | None, int, int]]
) -> NDArray[np.int64] | None:
    """The values; None where it is not clear which they are."""
    if len(raw) == 1 and not typed:
        first, last = raw[0]
        width = 4 if kind == INT32 else 8
        return np.frombuffer(data, f"<i{width}", (last - first) // width, first).astype(np.int64)
    if raw or any(number != _TYPED_VALUES[kind] for number, _, _, _ in typed):
        return None
    if sum(last - first for _, _, first, last in typed) > _MOST_TYPED or len(typed) > _MOST_TYPED:
        return None
    values: list[int] = []
    for _, value, first, last in typed:
        values += [_signed(value)] if value is not None else list(_varints(data, first, last))
    return np.array(values, np.int64).astype(np.int32 if kind == INT32 else np.int64).astype(np.int64)


def _varints(data: bytes, position: int, end: int) -> Iterator[int]:
    while position < end:
        value, position = _varint(data, position, end)
        yield _signed(value)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int | None, int, int]]:
    """Number of each field, and its value if it is a varint; otherwise where its contents lie."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position, end)
            yield number, value, position, position
        elif wire_type == _LENGTH:
            length, start = _varint(data, position, end)
            position = start + length
            if position > end:
                raise ValueError("a field longer than its message")
            yield number, None, start, position
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError("no wire type of protobuf")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("no varint")
