"""Refuses models whose division can end the process that runs them.

The least whole number divided by -1 has no quotient of its size, and ONNX Runtime leaves that to the
processor, which ends the process. (It sees to zeros itself, and to 8 and 16 bits; `Mod` is sound. All of this was
tried.) Any caller of such a model who may choose both numbers could so end every model of the replica. A `Div` is
therefore served if it is known of either number that it is never that one: a constant, or counted from a shape,
or if the two are no whole numbers of 32 or 64 bits.

What a value is follows from what the model says, and from the operators listed here. Of a value of which neither
says anything, the worst is taken; `onnx.shape_inference` writes the datatypes of all values into a model, and
ONNX Runtime refuses one where they are wrong.

If this fails: values of a caller end a process; of several workers, one at a time, and twice at most (`board`).
"""

from __future__ import annotations

from collections import ChainMap, Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from casemate.errors import FieldViolation, InvalidRequest, Reason
from services.inference.onnx_graph import FLOAT, INT32, INT64, Tensor, datatype, read_graphs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from services.inference.onnx_graph import Graph, Node

_LEAST: Final = {INT32: np.iinfo(np.int32).min, INT64: np.iinfo(np.int64).min}
_DEFAULT_DOMAINS: Final = frozenset({b"", b"ai.onnx"})

# Operators whose outputs are floating point.
_FLOATING: Final = frozenset(
    b"Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Celu Conv ConvTranspose Cos Cosh "
    b"DequantizeLinear Elu Erf Exp Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid "
    b"HardSwish InstanceNormalization LRN LayerNormalization Log LogSoftmax LpNormalization LpPool Mish RandomNormal "
    b"RandomUniform Reciprocal Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu".split()
)
# Operators whose output is of the datatype of the first input, and those where all inputs are of it.
_AS_FIRST: Final = frozenset(
    b"Abs Ceil Compress CumSum DepthToSpace Dropout Expand Flatten Floor Gather GatherElements GatherND Identity "
    b"LeakyRelu Neg PRelu Pad Pow ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    b"ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round ScatterElements ScatterND Sign "
    b"Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Upsample".split()
)
_AS_ANY: Final = frozenset(b"Add Clip Concat Div Einsum Gemm MatMul Max Mean Min Mod Mul Sub Sum".split())
# Operators that give numbers of the first input as they are.
_PICKING: Final = frozenset(b"Flatten Gather Identity Reshape Slice Squeeze Transpose Unsqueeze".split())


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known: the datatype (0: nothing), the numbers if they are constant, whether they count something."""

    kind: int = 0
    numbers: NDArray[np.int64] | None = None
    counts: bool = False


_UNKNOWN: Final = _Value()


def require_sound_division(model: bytes, operators: Collection[bytes]) -> None:
    """Returns when no division of the model can end the process.

    Args:
        model: a file that `check_onnx` found no fault with.
        operators: what it consists of, as that told.

    Raises:
        InvalidRequest: reason MODEL_INVALID.
    """
    if b"Div" not in operators:
        return
    try:
        main, functions = read_graphs(model)
    except ValueError:
        raise _refused("is not an ONNX model") from None
    for graph in (main, *functions):
        _judge_graph(graph, {})


def _judge_graph(graph: Graph, outer: Mapping[bytes, _Value]) -> None:
    several = _given_twice(graph)
    inner = _at_first(graph) | dict.fromkeys(several, _UNKNOWN)
    values: ChainMap[bytes, _Value] = ChainMap(inner, dict(outer))
    for node in graph.nodes:
        for attribute in node.attributes:
            for body in attribute.graphs:
                _judge_graph(body, values)
        given = [values.get(name, _UNKNOWN) for name in node.inputs]
        ours = node.domain in _DEFAULT_DOMAINS
        if ours and node.operator == b"Div" and not _sound(given):
            raise _refused(
                "divides whole numbers that its callers may choose, and the least one by -1 ends the process: divide "
                "by a constant, or in floating point; where it does, onnx.shape_inference.infer_shapes says so"
            )
        value = _result(node, given) if ours else _UNKNOWN
        for place, name in enumerate(node.outputs):
            if name in several:
                continue
            said = inner[name]
            inner[name] = _Value(said.kind or (value.kind if place == 0 else 0), value.numbers, value.counts)


def _at_first(graph: Graph) -> dict[bytes, _Value]:
    """What is known before any node: of whatever this graph names, since that hides what has its name outside."""
    named = [*graph.inputs, *graph.sparse, *(name for node in graph.nodes for name in node.outputs)]
    kinds = {name: _Value(kind) for name, kind in graph.kinds.items()}
    return dict.fromkeys(named, _UNKNOWN) | kinds | {tensor.name: _of(tensor) for tensor in graph.constants}


def _given_twice(graph: Graph) -> set[bytes]:
    """Names of several values of one graph: it is not for us to say which of them ONNX Runtime takes.

    A constant that is listed among the inputs too is one value, as no caller can give it.
    """
    constants = [tensor.name for tensor in graph.constants]
    counts = Counter([*constants, *graph.sparse])
    counts.update(name for name in graph.inputs if name not in counts)
    counts.update(name for node in graph.nodes for name in node.outputs if name)
    return {name for name, count in counts.items() if count > 1}


def _sound(given: Sequence[_Value]) -> bool:
    if len(given) != 2:
        return True  # ONNX Runtime refuses it
    dividend, divisor = given
    kind = dividend.kind or divisor.kind
    if kind and kind not in _LEAST:
        return True
    if dividend.counts or divisor.counts:
        return True
    if divisor.numbers is not None and -1 not in divisor.numbers:
        return True
    return dividend.numbers is not None and not any(least in dividend.numbers for least in _LEAST.values())


def _result(node: Node, given: Sequence[_Value]) -> _Value:
    """What is known of a node's first output."""
    operator, first = node.operator, given[0] if given else _UNKNOWN
    value = _UNKNOWN
    if operator == b"Constant":
        value = _constant(node)
    elif operator == b"Cast":
        to = next((each.number for each in node.attributes if each.name == b"to" and not each.is_callers), 0)
        value = _Value(datatype(to))
    elif operator in (b"Shape", b"Size"):
        value = _Value(INT64, counts=True)
    elif operator in _FLOATING:
        value = _Value(FLOAT)
    elif operator in _AS_FIRST:
        value = _Value(first.kind, counts=first.counts and operator in _PICKING)
    elif operator in _AS_ANY or operator == b"Where":
        alike = given if operator in _AS_ANY else given[1:]
        value = _Value(next((each.kind for each in alike if each.kind), 0))
    return value


def _constant(node: Node) -> _Value:
    said = node.attributes[0] if len(node.attributes) == 1 else None
    if said is None or said.is_callers:
        return _UNKNOWN
    if said.name == b"value" and said.tensor is not None:
        return _of(said.tensor)
    if said.name == b"value_int":
        return _Value(INT64, np.array([said.number], np.int64))
    if said.name == b"value_ints":
        return _Value(INT64, np.array(said.numbers, np.int64))
    return _Value(FLOAT) if said.name in (b"value_float", b"value_floats") else _UNKNOWN


def _of(tensor: Tensor) -> _Value:
    return _Value(tensor.kind, tensor.numbers)


def _refused(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation("model.onnx", description),),
    )
