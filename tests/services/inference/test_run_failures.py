"""Values that a model does not take are the caller's fault, whichever kernel finds out; a broken model is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from onnx import TensorProto, helper

from casemate.errors import CasemateError, Code, Exhausted, InternalError, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.instance import OnnxInstance
from services.inference.model_memory import half_of_memory
from services.inference.run_failures import failure_of
from tests.services.inference.house import House

INT, FLOAT, TEXT = TensorProto.INT64, TensorProto.FLOAT, TensorProto.STRING


def of_one_node(kind: str, gives: int, *takes: int, **attributes: object) -> bytes:
    """A model of one node; its inputs are vectors `a`, `b` …, its output is `y`."""
    names = "abc"[: len(takes)]
    graph = helper.make_graph(
        [helper.make_node(kind, list(names), ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind_of, [None]) for name, kind_of in zip(names, takes, strict=True)],
        [helper.make_tensor_value_info("y", gives, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def floats(*values: float) -> np.ndarray:
    return np.array(values, "<f4")


def whole(*values: int) -> np.ndarray:
    return np.array(values, "<i8")


def text(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


VALUES = {
    "a negative size": (of_one_node("ConstantOfShape", FLOAT, INT), [whole(-5)], [whole(5)]),
    "sizes whose product overflows": (of_one_node("ConstantOfShape", FLOAT, INT), [whole(2**40, 2**40)], [whole(2, 2)]),
    "another number of elements": (
        of_one_node("Reshape", FLOAT, FLOAT, INT),
        [floats(1, 2, 3), whole(2, 2)],
        [floats(1, 2, 3, 4), whole(2, 2)],
    ),
    "an index beyond the end": (
        of_one_node("Gather", FLOAT, FLOAT, INT),
        [floats(1, 2), whole(7)],
        [floats(1, 2), whole(1)],
    ),
    "vectors that do not match": (
        of_one_node("Add", FLOAT, FLOAT, FLOAT),
        [floats(1, 2, 3), floats(1, 2)],
        [floats(1, 2), floats(1, 2)],
    ),
    "a division by zero": (of_one_node("Div", INT, INT, INT), [whole(1), whole(0)], [whole(1), whole(1)]),
    "text that is no number": (of_one_node("Cast", FLOAT, TEXT, to=FLOAT), [text("x")], [text("1.5")]),
}


def run(model: bytes, values: list[np.ndarray]) -> np.ndarray:
    return OnnxInstance(model, unsafe_division=True).run(MappingProxyType(dict(zip("abc", values, strict=False))))["y"]


def raised(ask: Callable[[], object]) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        ask()
    return caught.value


@pytest.mark.parametrize(("model", "bad", "good"), VALUES.values(), ids=VALUES)
def test_values_that_a_kernel_does_not_take_are_the_callers_fault_and_others_run(
    model: bytes, bad: list[np.ndarray], good: list[np.ndarray]
) -> None:
    refused = raised(lambda: run(model, bad))
    assert (refused.code, refused.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert [violation.description for violation in refused.violations] == ["the model does not take these values"]
    assert run(model, good).size


def test_values_that_ask_for_more_memory_than_there_is_are_too_large_and_fewer_are_not() -> None:
    model = of_one_node("ConstantOfShape", FLOAT, INT)
    refused = raised(lambda: run(model, [whole(10**14)]))
    assert (refused.code, refused.reason) == (Code.RESOURCE_EXHAUSTED, Reason.REQUEST_TOO_LARGE)
    assert run(model, [whole(10)]).size == 10
    assert isinstance(failure_of(MemoryError("std::bad_alloc")), Exhausted)


NotImplemented_ = type("NotImplemented", (Exception,), {})  # ONNX Runtime's classes are told apart by name
Fail = type("Fail", (Exception,), {})


@pytest.mark.parametrize(
    "error",
    [
        NotImplemented_("Non-zero status code returned while running Cast node: no kernel"),
        Fail("the session is gone"),
        ValueError("something of ours"),
    ],
    ids=["a kernel that is missing", "no node was run", "not of ONNX Runtime"],
)
def test_what_fails_whatever_it_is_given_is_not_the_callers_fault(error: Exception) -> None:
    assert isinstance(failure_of(error), InternalError)


def test_on_the_wire_the_caller_is_told_so_and_nothing_of_the_models_inside(house: House) -> None:
    house.publish({"model.onnx": of_one_node("ConstantOfShape", FLOAT, INT)}, model="sizes")

    def ask(size: int) -> wire.ModelInferResponse:
        request = wire.ModelInferRequest(model_name="sizes", raw_input_contents=[whole(size).tobytes()])
        request.inputs.add(name="a", datatype="INT64", shape=[1])
        return house.call("ModelInfer", request)

    refused = raised(lambda: ask(-5))
    assert (refused.code, refused.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert str(refused).startswith("the request is not valid (request ")
    assert len(ask(5).raw_output_contents[0]) == 20


@pytest.mark.parametrize(("text", "expected"), [("1000000000\n", 500_000_000), ("max\n", None), (None, None)])
def test_half_of_the_memory_is_that_of_the_container_where_it_has_less(
    tmp_path: Path, text: str | None, expected: int | None
) -> None:
    limit = tmp_path / "memory.max"
    if text is not None:
        limit.write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    assert half_of_memory(limit) == (expected or machine)
