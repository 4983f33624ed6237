"""The models of `bench.inference`: a small one, a net of 24 MB, and one that gives back what it gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

IMAGE = (3, 32, 32)
FEATURES = 1024
HIDDEN = 5800
ECHO_FLOATS = 4 * 1024 * 1024


def small() -> bytes:
    """A logistic regression over four features and three classes: the size of iris."""
    return _regression(4, 3)


def digits() -> bytes:
    """A logistic regression over 64 pixels and ten classes: the size of the small digits."""
    return _regression(64, 10)


def _regression(features: int, classes: int) -> bytes:
    weights = np.random.default_rng(1).standard_normal((features, classes)).astype(np.float32)
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)],
        ("n", features),
        ("n", classes),
        {"w": weights},
    )


def net() -> bytes:
    """A convolution over patches and two dense layers: 24 MB of weights, most of them in the dense layers."""
    random = np.random.default_rng(2)
    weights = {
        "w1": random.standard_normal((16, 3, 4, 4)) * 0.2,
        "w2": random.standard_normal((FEATURES, HIDDEN)) * 0.02,
        "b2": np.zeros(HIDDEN),
        "w3": random.standard_normal((HIDDEN, 10)) * 0.02,
        "b3": np.zeros(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], strides=[4, 4]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["y"]),
    ]
    return _model(nodes, ("n", *IMAGE), ("n", 10), {name: value.astype(np.float32) for name, value in weights.items()})


def echo() -> bytes:
    """Gives back what it gets."""
    return _model([helper.make_node("Identity", ["x"], ["y"])], ("n",), ("n",), {})


def batching(max_rows: int) -> bytes:
    """The `serving.json` of the net, batched."""
    values = np.random.default_rng(3).standard_normal((1, *IMAGE)).astype(np.float32)
    sample = {"shape": [1, *IMAGE], "values": [float(value) for value in values.reshape(-1)]}
    return json.dumps(
        {"batching": {"max_rows": max_rows, "window_us": 3000}, "warm_up": [{"inputs": {"x": sample}}]}
    ).encode()


def _model(
    nodes: Sequence[NodeProto],
    takes: Sequence[str | int],
    gives: Sequence[str | int],
    weights: Mapping[str, NDArray[np.float32]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())
