"""Looks through an ONNX file's protobuf wire format before ONNX Runtime sees it.

ONNX lets a tensor name a file to read its data from, by any path
(CVE-2022-25882, CVE-2024-27318 and their kin). A model here is exactly the
bytes that were signed, so such a tensor is refused wherever it stands.

ONNX also lets a model define functions that call one another, and ONNX Runtime
writes each call out in full: a few kilobytes that name ten calls of ten calls
become as many nodes as their writer likes. Nodes are therefore counted as they
will be, by products, without writing one out.

The walk reads tags, lengths and the names of what is called.

If this fails: ONNX Runtime refuses external data of a model that came from
memory, because it has no path to resolve it against.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from casemate.errors import FieldViolation, InvalidRequest, Reason

# Fields of onnx.proto3 that lead to tensors, by message.
_NESTED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA = 13  # TensorProto.external_data
_DATA_LOCATION = 14  # TensorProto.data_location; 0 is DEFAULT
_NAMES = {"node": (4, 7), "function": (1, 10)}  # what is called or defined, and its domain
_DEFAULT_DOMAIN = b"ai.onnx"  # also written as no name at all
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


INLINE_IT = (
    "save it with all data inside: "
    "python -c \"import onnx; onnx.save_model(onnx.load('model.onnx'), 'whole.onnx', save_as_external_data=False)\""
)
"""What a publisher does about external data."""


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Caps on what a model may consist of; nodes are counted with every function written out."""

    depth: int = 64
    nodes: int = 200_000
    tensors: int = 200_000


_Name = tuple[bytes, bytes]
"""Of an operator or a function, and of its domain."""


class _Malformed(Exception):
    pass


def check_onnx(data: bytes, *, limits: GraphLimits) -> frozenset[bytes]:
    """The operators of a model that keeps all its data inside and stays within the limits.

    Raises:
        InvalidRequest: reason MODEL_INVALID: external data, not an ONNX protobuf, or too large a graph.
    """
    walk = _Walk(data, limits)
    try:
        walk.message("model", 0, len(data), 0)
    except _Malformed as error:
        raise _invalid("is not an ONNX model") from error
    if not walk.graphs:
        raise _invalid("is not an ONNX model")
    walk.require_small_when_written_out()
    return frozenset(walk.operators)


def _invalid(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation("model.onnx", description),),
    )


class _Walk:
    def __init__(self, data: bytes, limits: GraphLimits) -> None:
        self._data = data
        self._limits = limits
        self._nodes = 0
        self._tensors = 0
        self.graphs = 0
        self._calls: Counter[_Name] = Counter()
        self._functions: dict[_Name, list[Counter[_Name]]] = {}
        self.operators: set[bytes] = set()

    def message(self, kind: str, position: int, end: int, depth: int) -> None:
        """Walks one message's fields; raises on the first thing that may not be."""
        self._count(kind, depth)
        nested, names = _NESTED[kind], _NAMES.get(kind, ())
        said, outside = [b"", b""], self._calls
        if kind == "function":
            self._calls = Counter()
        while position < end:
            tag, position = self._varint(position, end)
            if tag >> 32:  # ONNX Runtime's protobuf drops these bits, and would see a field that is hidden from us
                raise _Malformed
            number, wire_type = tag >> 3, tag & 7
            value, start, position = self._field(wire_type, position, end)
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                raise _invalid(f"names external data; {INLINE_IT}")
            if number in nested and wire_type == _LENGTH:
                self.message(nested[number], start, position, depth + 1)
            elif number in names and wire_type == _LENGTH:
                said[names.index(number)] = self._data[start:position]
        name = (said[0], b"" if said[1] == _DEFAULT_DOMAIN else said[1])
        if kind == "node":
            self._calls[name] += 1
            self.operators.add(said[0])
        elif kind == "function":
            self._functions.setdefault(name, []).append(self._calls)  # one name may have several overloads
            self._calls = outside

    def require_small_when_written_out(self) -> None:
        """Returns when the graph stays within the limit of nodes once every function call is its body."""
        sizes: dict[_Name, int] = {}

        def written_out(calls: Counter[_Name], above: tuple[_Name, ...]) -> int:
            if len(above) > self._limits.depth:
                raise _invalid("is a larger graph than is served")
            total = 0
            for name, count in calls.items():
                if name in above:
                    raise _invalid("has a function that calls itself")
                if name not in sizes:
                    bodies = self._functions.get(name, ())
                    sizes[name] = 1 + max((written_out(body, (*above, name)) for body in bodies), default=0)
                total += count * sizes[name]
            return total

        if written_out(self._calls, ()) > self._limits.nodes:
            raise _invalid("is a larger graph than is served")

    def _count(self, kind: str, depth: int) -> None:
        self.graphs += kind == "graph"
        self._nodes += kind == "node"
        self._tensors += kind == "tensor"
        if depth > self._limits.depth or self._nodes > self._limits.nodes or self._tensors > self._limits.tensors:
            raise _invalid("is a larger graph than is served")

    def _field(self, wire_type: int, position: int, end: int) -> tuple[int, int, int]:
        """Value (0 unless a varint), first byte of the contents, and the position after the field."""
        value, start = 0, position
        if wire_type == _VARINT:
            value, position = self._varint(position, end)
        elif wire_type == _LENGTH:
            length, start = self._varint(position, end)
            position = start + length
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise _Malformed
        if position > end:
            raise _Malformed
        return value, start, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise _Malformed
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _Malformed
