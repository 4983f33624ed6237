"""Small ONNX models made on the spot."""

from __future__ import annotations

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def _model(nodes, inputs, outputs, weights=()) -> bytes:
    graph = helper.make_graph(nodes, "net", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model.SerializeToString()


def _tensor(name: str, *shape: object, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def dense(width: int = 64, answers: int = 10, seed: int = 7) -> bytes:
    """One matrix and a softmax: rows stay apart; one row alone is rounded otherwise than beside others."""
    weights = np.random.default_rng(seed).standard_normal((answers, width)).astype(np.float32)
    return _model(
        [
            helper.make_node("Gemm", ["x", "w"], ["z"], transB=1),
            helper.make_node("Softmax", ["z"], ["y"], axis=1),
        ],
        [_tensor("x", "n", width)],
        [_tensor("y", "n", answers)],
        [numpy_helper.from_array(weights, "w")],
    )


def mixing(width: int = 64) -> bytes:
    """Takes the mean over all rows from each: what a row gets depends on the others."""
    return _model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [_tensor("x", "n", width)],
        [_tensor("y", "n", width)],
    )


def poisonable(width: int = 64) -> bytes:
    """Adds nothing of the other rows to each, but for what is no number."""
    return _model(
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["all"], keepdims=1),
            helper.make_node("Mul", ["all", "none"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["y"]),
        ],
        [_tensor("x", "n", width)],
        [_tensor("y", "n", width)],
        [
            numpy_helper.from_array(np.array([0], np.int64), "axis"),
            numpy_helper.from_array(np.array([0], np.float32), "none"),
        ],
    )


def summing(width: int = 64) -> bytes:
    """One answer for all rows."""
    return _model(
        [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=1)],
        [_tensor("x", "n", width)],
        [_tensor("y", "m", width)],
        [numpy_helper.from_array(np.array([0], np.int64), "axis")],
    )


def looping() -> bytes:
    """Counts to its input, one step at a time: as slow as its caller likes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Add", ["sum", "sum"], ["twice"]),
            helper.make_node("Sub", ["twice", "sum"], ["same"]),
        ],
        "body",
        [
            _tensor("i", kind=TensorProto.INT64),
            _tensor("go", kind=TensorProto.BOOL),
            _tensor("sum", 1),
        ],
        [_tensor("goes", kind=TensorProto.BOOL), _tensor("same", 1)],
    )
    return _model(
        [
            helper.make_node("Squeeze", ["x", "zero"], ["count"]),
            helper.make_node("Loop", ["count", "yes", "start"], ["y"], body=body),
        ],
        [_tensor("x", 1, kind=TensorProto.INT64)],
        [_tensor("y", 1)],
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array(True), "yes"),  # noqa: FBT003
            numpy_helper.from_array(np.array([1], np.float32), "start"),
        ],
    )


def dividing() -> bytes:
    """Divides whole numbers of its caller: by some, the process ends."""
    takes = [_tensor(name, None, kind=TensorProto.INT64) for name in "ab"]
    return _model([helper.make_node("Div", ["a", "b"], ["y"])], takes, [_tensor("y", None, kind=TensorProto.INT64)])


def sample(width: int = 64, rows: int = 2, name: str = "x") -> dict[str, object]:
    """A warm-up sample for the models of this module."""
    values = np.random.default_rng(3).standard_normal((rows, width)).astype(np.float32)
    return {"inputs": {name: {"shape": [rows, width], "values": [float(value) for value in values.reshape(-1)]}}}


def serving(**members: object) -> bytes:
    """A `serving.json`."""
    return json.dumps(members).encode()
