"""Models that reach outside their own bytes, or are none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from casemate.errors import InvalidRequest, Reason
from services.inference.instance import OnnxInstance, session_options
from services.inference.onnx_wire import GraphLimits, check_onnx
from tests.services.inference.conftest import Digits


def weight(*, external: bool) -> TensorProto:
    tensor = helper.make_tensor("weight", TensorProto.FLOAT, [2], [1.0, 2.0])
    if external:
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def inputs_and_outputs() -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    return (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )


def wrapped(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def in_initializer(tensor: TensorProto) -> bytes:
    nodes = [helper.make_node("Add", ["x", "weight"], ["y"])]
    return wrapped(helper.make_graph(nodes, "g", *inputs_and_outputs(), [tensor]))


def in_attribute(tensor: TensorProto) -> bytes:
    nodes = [
        helper.make_node("Constant", [], ["weight"], value=tensor),
        helper.make_node("Add", ["x", "weight"], ["y"]),
    ]
    return wrapped(helper.make_graph(nodes, "g", *inputs_and_outputs()))


def in_branch(tensor: TensorProto) -> bytes:
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2])
    branch = helper.make_graph([helper.make_node("Identity", ["weight"], ["inner"])], "b", [], [output], [tensor])
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("If", ["condition"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["x", "chosen"], ["y"]),
    ]
    return wrapped(helper.make_graph(nodes, "g", *inputs_and_outputs(), [condition]))


PLACES = pytest.mark.parametrize("place", [in_initializer, in_attribute, in_branch])


@PLACES
def test_a_tensor_that_names_a_file_is_refused_wherever_it_stands(place: Callable[[TensorProto], bytes]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OnnxInstance(place(weight(external=True)))
    assert caught.value.reason is Reason.MODEL_INVALID
    assert "external data" in caught.value.violations[0].description


@PLACES
def test_the_same_tensor_with_its_data_inside_runs(place: Callable[[TensorProto], bytes]) -> None:
    instance = OnnxInstance(place(weight(external=False)))
    assert instance.run({"x": np.zeros(2, dtype=np.float32)})["y"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 64])
def test_bytes_that_are_no_onnx_model_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OnnxInstance(data)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_a_graph_beyond_the_limits_is_refused_and_one_within_them_is_not(digits: Digits) -> None:
    with pytest.raises(InvalidRequest):
        check_onnx(digits.onnx, limits=GraphLimits(nodes=0))
    check_onnx(digits.onnx, limits=GraphLimits())


def test_every_truncation_of_a_model_is_refused_without_any_other_error(digits: Digits) -> None:
    for end in range(0, len(digits.onnx), 97):
        try:
            check_onnx(digits.onnx[:end], limits=GraphLimits())
        except InvalidRequest as error:
            assert error.reason is Reason.MODEL_INVALID  # noqa: PT017  # a cut between two fields is still a protobuf


def test_a_model_whose_output_is_no_tensor_is_refused_with_a_hint() -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    kinds = [("x", FloatTensorType([None, 1]))]
    with pytest.raises(InvalidRequest) as caught:
        OnnxInstance(convert_sklearn(classifier, initial_types=kinds).SerializeToString())
    assert "ZipMap" in caught.value.violations[0].description
    plain = convert_sklearn(classifier, initial_types=kinds, options={id(classifier): {"zipmap": False}})
    assert [spec.datatype.name for spec in OnnxInstance(plain.SerializeToString()).outputs] == ["INT64", "FP32"]


def test_text_runs_through_a_model() -> None:
    text = TensorProto.STRING
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", text, [None])],
        [helper.make_tensor_value_info("y", text, [None])],
    )
    instance = OnnxInstance(wrapped(graph))
    assert instance.run({"x": np.array(["a", "é"], dtype=object)})["y"].tolist() == ["a", "é"]


def test_threads_and_optimisation_are_set_and_not_left_to_defaults() -> None:
    options = session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.execution_mode.name == "ORT_SEQUENTIAL"
    assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"


def calling(levels: int, each: int) -> bytes:
    """Functions of which each calls the next so many times."""
    domains = [helper.make_opsetid("f", 1), helper.make_opsetid("", 17)]
    functions = []
    for level in range(levels):
        names = ["a", *(f"t{step}" for step in range(each - 1)), "b"]
        kind, domain = (f"F{level + 1}", "f") if level < levels - 1 else ("Identity", "")
        nodes = [helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain) for i in range(each)]
        functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], nodes, domains))
    graph = helper.make_graph([helper.make_node("F0", ["x"], ["y"], domain="f")], "g", *inputs_and_outputs())
    return bytes(helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9).SerializeToString())


def test_functions_are_counted_as_they_will_be_written_out() -> None:
    bomb = calling(levels=12, each=10)
    assert len(bomb) < 5000
    with pytest.raises(InvalidRequest) as caught:
        check_onnx(bomb, limits=GraphLimits())
    assert "a larger graph than is served" in str(caught.value)
    check_onnx(calling(levels=5, each=10), limits=GraphLimits())
    check_onnx(calling(levels=2, each=2), limits=GraphLimits(nodes=7))  # F0, two of F1, four of Identity
    with pytest.raises(InvalidRequest):
        check_onnx(calling(levels=2, each=2), limits=GraphLimits(nodes=6))


def test_a_function_that_calls_itself_is_refused_whichever_way_it_goes() -> None:
    model = onnx.load_from_string(calling(levels=3, each=1))
    check_onnx(model.SerializeToString(), limits=GraphLimits())
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "F0", "f"
    with pytest.raises(InvalidRequest) as caught:
        check_onnx(model.SerializeToString(), limits=GraphLimits())
    assert "calls itself" in str(caught.value)


def test_a_call_within_a_branch_of_a_function_counts_too() -> None:
    model = onnx.load_from_string(calling(levels=12, each=10))
    for function in model.functions:
        inner = helper.make_graph(list(function.node), "inner", [], [])
        del function.node[:]
        function.node.append(helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner))
    with pytest.raises(InvalidRequest):
        check_onnx(model.SerializeToString(), limits=GraphLimits())
