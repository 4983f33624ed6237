"""ONNX models that give back what they take, one per datatype."""

from __future__ import annotations

from onnx import TensorProto, helper

ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def identity(*datatypes: str, shape: tuple[int | None, ...] = (None, 3)) -> bytes:
    """A model with an input `<datatype>_in` and an output `<datatype>_out` for each datatype."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_in"], [f"{name}_out"]) for name in datatypes],
        "identity",
        [helper.make_tensor_value_info(f"{name}_in", ELEMENTS[name], shape) for name in datatypes],
        [helper.make_tensor_value_info(f"{name}_out", ELEMENTS[name], shape) for name in datatypes],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
