"""A model whose callers could end the process by dividing whole numbers is refused; every other division is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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


def in_a_loop(*, hidden: bool) -> bytes:
    """By a constant outside of its body; or by what the loop brings, where that has the constant's name and no type."""
    brought = helper.make_empty_tensor_value_info("two" if hidden else "other")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Div", ["a", "two"], ["z"])],
        "body",
        [value("turn", INT64, ()), value("go_on", TensorProto.BOOL, ()), brought],
        [value("goes_on", TensorProto.BOOL, ()), value("z", INT64, None)],
    )
    nodes = [helper.make_node("Loop", ["times", "begin", "b"], ["y"], body=body)]
    constants = [constant("two", 2), helper.make_tensor("times", INT64, [], [1])]
    constants.append(helper.make_tensor("begin", TensorProto.BOOL, [], [True]))
    return model(nodes, [value("a", INT64), value("b", INT64)], [value("y", INT64, None)], constants)


def by_a_functions_attribute(*, number: int, **said: int) -> bytes:
    """The function's constant, or the type that it casts to, is what its caller says; what stands beside it is not."""
    name, operator = next(((name, "Cast") for name in said), ("value_int", "Constant"))
    given = onnx.AttributeProto(name=name, ref_attr_name="given", type=onnx.AttributeProto.INT, i=said.get(name, 2))
    node = helper.make_node(operator, ["v"] if said else [], ["it"])
    node.attribute.append(given)
    nodes = [node, helper.make_node("Div", ["it" if said else "u", "it"], ["w"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "Given", ["u", "v"], ["w"], nodes, opsets, attributes=["given"])
    calls = [helper.make_node("Given", ["a", "b"], ["y"], domain="mine", given=number)]
    return model(calls, [value("a", INT64), value("b", INT64)], [value("y", INT64, None)], functions=[function])


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


def by_a_constant_among_the_inputs() -> bytes:
    """As old exporters wrote it; a caller cannot give it."""
    takes = [value("a", INT64), value("two", INT64, (1,))]
    return model([helper.make_node("Div", ["a", "two"], ["y"])], takes, [value("y", INT64, None)], [constant("two", 2)])


def by_either(*, before: int | None = None, among: int | None = None, behind: int | None = None, sparse=(), takes=()):
    """Divides by what has several definitions: by nodes before and behind the division, and by constants."""
    divides, constants = helper.make_node("Div", ["a", "k"], ["y"]), [] if among is None else [constant("k", among)]
    made = [
        None if one is None else helper.make_node("Constant", [], ["k"], value_ints=[one]) for one in (before, behind)
    ]
    nodes = [node for node in (made[0], divides, made[1]) if node is not None]
    gives = [value("y", INT64, None)]
    graph = helper.make_graph(nodes, "net", [value("a", INT64), *takes], gives, constants, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def by_a_functions_parameter_that_is_a_constant_too() -> bytes:
    nodes = [helper.make_node("Constant", [], ["k"], value_ints=[2]), helper.make_node("Div", ["u", "k"], ["w"])]
    function = helper.make_function("mine", "Half", ["u", "k"], ["w"], nodes, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("Half", ["a", "b"], ["y"], domain="mine")]
    return model(calls, [value("a", INT64), value("b", INT64)], [value("y", INT64, None)], functions=[function])


SPARSE = helper.make_sparse_tensor(constant("k", -1), constant("places", 0), [1])


def field(number: int, contents: bytes) -> bytes:
    """A field with contents of less than 128 bytes, as protobuf writes it."""
    return bytes((number << 3 | 2, len(contents))) + contents


def datatype_beyond_32_bits() -> bytes:
    """2^32 + INT64, of which protobuf keeps INT64."""
    known = model([helper.make_node("Div", ["a", "b"], ["y"])], [], [value("y", INT64, None)])
    kind = b"\x08\x87\x80\x80\x80\x10" + field(2, field(1, b"\x08\x01"))
    takes = [field(11, field(1, name) + field(2, field(1, kind))) for name in (b"a", b"b")]
    return known + field(7, b"".join(takes))


def cast_beyond_32_bits() -> bytes:
    nodes = [
        helper.make_node("Cast", ["a"], ["b"], to=2**32 + INT64),
        helper.make_node("Div", ["b", "b"], ["y"]),
    ]
    return model(nodes, [value("a", FLOAT)], [value("y", INT64, None)])


def by_minus_one_in_32_bits() -> bytes:
    """2^32 - 1, of which protobuf makes -1 where a number has 32 bits."""
    known = model([helper.make_node("Div", ["a", "b"], ["y"])], [value("a", INT32)], [value("y", INT32, None)])
    constant = b"\x08\x01\x10\x06" + field(5, b"\xff\xff\xff\xff\x0f") + field(8, b"b")
    return known + field(7, field(5, constant))


def hidden_by_its_tag() -> bytes:
    """The tag of a node with a 33rd bit, which protobuf drops."""
    node = helper.make_node("Div", ["a", "b"], ["y"]).SerializeToString()
    known = model([], [value("a", INT64), value("b", INT64)], [value("y", INT64, None)])
    return known + field(7, b"\x8a\x80\x80\x80\x10" + bytes([len(node)]) + node)


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
    "in a loop, by two outside of it": in_a_loop(hidden=False),
    "by a constant that is listed among the inputs": by_a_constant_among_the_inputs(),
    "by a node's constant alone": by_either(before=2),
    "of a datatype that the model says": of_what_nothing_is_said(inferred=True),
}
UNSOUND = {
    "by an input": by(INT64),
    "in a loop, by what hides a constant": in_a_loop(hidden=True),
    "by a constant that is the function's attribute": by_a_functions_attribute(number=-1),
    "cast to what is the function's attribute": by_a_functions_attribute(number=INT64, to=FLOAT),
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
    "by a constant that a sparse one replaces": by_either(among=2, sparse=[SPARSE]),
    "by a constant that a node behind replaces": by_either(among=2, behind=-1),
    "by a node's constant that one behind replaces": by_either(before=2, behind=-1),
    "by an input of the name of a node's constant": by_either(before=2, takes=[value("k", INT64)]),
    "by a function's parameter of the name of a constant": by_a_functions_parameter_that_is_a_constant_too(),
    "of a datatype beyond 32 bits": datatype_beyond_32_bits(),
    "cast to a datatype beyond 32 bits": cast_beyond_32_bits(),
    "by what is -1 in 32 bits": by_minus_one_in_32_bits(),
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


@pytest.mark.parametrize("made", [*UNSOUND.values(), hidden_by_its_tag()], ids=[*UNSOUND, "hidden by its tag"])
def test_what_is_refused_is_a_model_to_onnx_runtime(made: bytes) -> None:
    """Or nothing were shown by refusing it; not run, and not optimized, which would compute some."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"]).get_outputs()


def test_a_division_behind_a_tag_that_protobuf_cuts_is_refused_with_the_file() -> None:
    with pytest.raises(InvalidRequest) as caught:
        OnnxInstance(hidden_by_its_tag())
    assert caught.value.reason is Reason.MODEL_INVALID


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
