"""A model whose callers could end the process by dividing whole numbers is refused; every other division is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from casemate.errors import CasemateError, Code, InvalidRequest, Reason
from services.inference.instance import OnnxInstance
from tests.services.inference.house import SERVING, House
from tests.services.inference.nets import dividing
from tests.support.authority import LeafFactory

INT64, INT32, INT16, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.FLOAT
LEAST = {INT64: -(2**63), INT32: -(2**31)}


def value(name: str, kind: int, shape: object = (None,)):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, *numbers: int, kind: int = INT64):
    return helper.make_tensor(name, kind, [len(numbers)], numbers)


def model(nodes, takes, gives, constants=(), functions=()) -> bytes:
    graph = helper.make_graph(nodes, "net", takes, gives, list(constants))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9).SerializeToString()


def by(kind: int, *divisors: int, dividend: tuple[int, ...] = (), raw: bool = False) -> bytes:
    """Divides what is given, or `dividend`, by constants."""
    made = {"divisor": divisors, "dividend": dividend}
    constants = [constant(name, *numbers, kind=kind) for name, numbers in made.items() if numbers]
    if raw:
        constants = [numpy_helper.from_array(numpy_helper.to_array(each), each.name) for each in constants]
    takes = [value(name, kind) for name, numbers in made.items() if not numbers]
    return model([helper.make_node("Div", ["dividend", "divisor"], ["y"])], takes, [value("y", kind, None)], constants)


def by_a_constant_node(**number: object) -> bytes:
    nodes = [helper.make_node("Constant", [], ["two"], **number), helper.make_node("Div", ["x", "two"], ["y"])]
    return model(nodes, [value("x", INT64)], [value("y", INT64, None)])


def of_a_shape() -> bytes:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Div", ["a", "rows"], ["y"]),
    ]
    takes = [value("x", FLOAT), value("a", INT64)]
    return model(nodes, takes, [value("y", INT64, None)], [constant("first", 0)])


def of_the_shape_less_one() -> bytes:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Sub", ["shape", "one"], ["less"]),
        helper.make_node("Div", ["a", "less"], ["y"]),
    ]
    return model(nodes, [value("x", FLOAT), value("a", INT64)], [value("y", INT64, None)], [constant("one", 1)])


def standardized() -> bytes:
    """As nets do it: no datatype is said of anything between."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[0], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["off", "deviation"], ["y"]),
    ]
    return model(nodes, [value("x", FLOAT)], [value("y", FLOAT, None)])


def cast(*, to: int) -> bytes:
    nodes = [
        helper.make_node("Cast", ["a"], ["b"], to=to),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Div", ["c", "b"], ["y"]),
    ]
    return model(nodes, [value("a", FLOAT)], [value("y", to, None)])


def in_a_branch(kind: int) -> bytes:
    branch = helper.make_graph([helper.make_node("Div", ["a", "b"], ["z"])], "branch", [], [value("z", kind, None)])
    other = helper.make_graph([helper.make_node("Identity", ["a"], ["w"])], "other", [], [value("w", kind, None)])
    nodes = [helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=other)]
    takes = [value("a", kind), value("b", kind), value("which", TensorProto.BOOL, ())]
    return model(nodes, takes, [value("y", kind, None)])


def in_a_function(*, by_two: bool) -> bytes:
    two = helper.make_node("Constant", [], ["two"], value_int=2)
    divides = helper.make_node("Div", ["u", "two" if by_two else "v"], ["w"])
    function = helper.make_function("mine", "Half", ["u", "v"], ["w"], [two, divides], [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Half", ["a", "b"], ["y"], domain="mine")]
    return model(nodes, [value("a", INT64), value("b", INT64)], [value("y", INT64, None)], functions=[function])


def of_what_nothing_is_said(*, inferred: bool) -> bytes:
    """Text to numbers by an operator that is not listed: floating point, which `infer_shapes` finds out."""
    nodes = [
        helper.make_node("OneHot", ["a", "depth", "values"], ["b"]),
        helper.make_node("Div", ["b", "b"], ["y"]),
    ]
    constants = [constant("depth", 3), helper.make_tensor("values", FLOAT, [2], [1.0, 2.0])]
    made = model(nodes, [value("a", INT64)], [value("y", FLOAT, None)], constants)
    if inferred:
        return onnx.shape_inference.infer_shapes(onnx.load_from_string(made)).SerializeToString()
    bare = onnx.load_from_string(made)
    bare.graph.output[0].ClearField("type")
    return bare.SerializeToString()


def with_another_constant_of_its_name() -> bytes:
    """As protobuf merges it: the graph has two constants of one name."""
    more = helper.make_graph([], "net", [], [], [constant("divisor", -1)])
    return by(INT64, 2) + onnx.ModelProto(graph=more).SerializeToString()


SOUND = {
    "by a constant": by(INT64, 2, 3),
    "by a constant as bytes": by(INT32, 2, raw=True),
    "a constant that is not the least": by(INT64, dividend=(100, -(2**63) + 1)),
    "small numbers": by(INT16),
    "by a node's constant": by_a_constant_node(value_ints=[2]),
    "by a node's tensor": by_a_constant_node(value=constant("", 2)),
    "by what a shape counts": of_a_shape(),
    "floating point": standardized(),
    "floating point by a cast": cast(to=FLOAT),
    "floating point in a branch": in_a_branch(FLOAT),
    "by two in a function": in_a_function(by_two=True),
    "of a datatype that the model says": of_what_nothing_is_said(inferred=True),
}
UNSOUND = {
    "by an input": by(INT64),
    "by an input of 32 bits": by(INT32),
    "by a constant that is -1": by(INT64, 2, -1),
    "by a constant that is -1, as bytes": by(INT32, -1, raw=True),
    "the least by an input": by(INT32, dividend=(5, -(2**31))),
    "the least by -1, which is computed while it loads": by(INT64, -1, dividend=(-(2**63),)),
    "by a node's -1": by_a_constant_node(value_int=-1),
    "by what a shape counts, less one": of_the_shape_less_one(),
    "numbers that were floating point": cast(to=INT64),
    "in a branch": in_a_branch(INT64),
    "in a function": in_a_function(by_two=False),
    "of a datatype that nothing says": of_what_nothing_is_said(inferred=False),
    "by one of two constants": with_another_constant_of_its_name(),
}


@pytest.mark.parametrize("made", SOUND.values(), ids=SOUND)
def test_a_division_that_cannot_end_the_process_is_served(made: bytes) -> None:
    assert OnnxInstance(made).outputs[0].name == "y"


@pytest.mark.parametrize("made", UNSOUND.values(), ids=UNSOUND)
def test_a_division_that_may_end_the_process_is_refused_before_onnx_runtime_sees_it(made: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OnnxInstance(made)
    assert caught.value.reason is Reason.MODEL_INVALID
    [violation] = caught.value.violations
    assert (violation.field, "divides whole numbers" in violation.description) == ("model.onnx", True)


@pytest.fixture
def allowing(tmp_path: Path, leaf: LeafFactory) -> Iterator[House]:
    serving = dataclasses.replace(SERVING, unsafe_division=True)
    house = House(directory=tmp_path / "allowing", leaf=leaf, serving=serving)
    yield house
    house.close()


def test_publishing_refuses_it_and_says_why_unless_the_operator_allows_it(house: House, allowing: House) -> None:
    with pytest.raises(CasemateError) as caught:
        house.publish({"model.onnx": dividing()}, model="dividing")
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, Reason.MODEL_INVALID)
    assert "by a constant" in caught.value.violations[0].description
    assert not house.trust.state.current.releases
    assert allowing.publish({"model.onnx": dividing()}, model="dividing").number == 1


def test_what_is_allowed_divides_as_numpy_does() -> None:
    made = OnnxInstance(dividing(), unsafe_division=True)
    a, b = np.array([LEAST[INT64], 7, -9]), np.array([1, -2, 4])
    assert made.run({"a": a, "b": b})["y"].tolist() == [LEAST[INT64], -3, -2]
