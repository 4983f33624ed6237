"""What somebody learns who asks for more than he may, or sends what adds up to nothing: nothing (rows D5, D7, D23).

And what went wrong in other model servers, on every method of ours.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from casemate.errors import Code, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.servicers import OPEN_INFERENCE
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, House
from tests.services.inference.identity import identity
from tests.services.inference.nets import serving
from tests.services.inference.test_hostile_requests import ABOUT_MODELS, image, refusal
from tests.services.inference.test_process import auth_port, environment, run
from tests.services.inference.test_worker_processes import number
from tests.support.authority import LeafFactory

__all__ = ["auth_port"]
ABOUT = {**ABOUT_MODELS, "ModelInfer": None}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": identity("FP32", "BYTES", shape=(None,))}, model="both")
    house.publish({"model.onnx": identity("FP32"), "serving.json": serving(non_finite="refuse")}, model="finite")
    yield house
    house.close()


def seen(house: House, method: str, name: str, version: str = "") -> tuple[object, ...]:
    """All that the wire shows of a refusal to somebody who may do nothing, but for the request's own number."""
    if method == "ModelInfer":
        request: object = image(1)
        request.model_name, request.model_version = name, version
    else:
        request = ABOUT[method](name=name, version=version)
    who = house.client("stranger")
    call = house.channel(who).unary_unary(f"/{OPEN_INFERENCE}/{method}", None, None)
    with pytest.raises(grpc.RpcError) as caught:
        call(request.SerializeToString(), metadata=house.metadata(who), timeout=PATIENCE)
    error = caught.value
    trailing = {key: value for key, value in error.trailing_metadata() if key != "date"}
    number = str(trailing.pop("casemate-request-id")).encode()
    shown = {key: value.replace(number, b"") if isinstance(value, bytes) else value for key, value in trailing.items()}
    return error.code(), error.details(), tuple(sorted(shown.items())), tuple(error.initial_metadata())


@pytest.mark.parametrize("method", ABOUT)
def test_d23_a_model_one_may_not_see_is_refused_byte_for_byte_as_one_that_is_not_there(
    house: House, method: str
) -> None:
    before = denied(house)
    ways = {seen(house, method, *asked) for asked in (("digits",), ("absent",), ("digits", "1"), ("digits", "7"))}
    assert len(ways) == 1
    assert next(iter(ways))[0] is grpc.StatusCode.NOT_FOUND
    # Refused at one place, before it is looked up: so neither takes longer than the other.
    assert denied(house) == before + 4
    assert house.call("ModelReady", wire.ModelReadyRequest(name="digits")).ready


def denied(house: House) -> float:
    """Refusals of the gate, whatever their reason."""
    return math.fsum(
        sample.value
        for family in house.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "casemate_denied_total"
    )


UNARY = sorted(
    method.name
    for method in wire.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if method.name != "ModelStreamInfer"
)


@pytest.mark.parametrize("method", UNARY)
def test_lesson_every_method_of_the_protocol_is_refused_without_a_token_before_its_body(
    house: House, method: str
) -> None:
    """Others guard some front ends, and forget the next one that they add."""
    call = house.channel(house.trainer).unary_unary(f"/{OPEN_INFERENCE}/{method}", None, None)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff" * 64, timeout=PATIENCE)  # no message of any method: it is not parsed
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff" * 64, metadata=house.metadata(house.trainer), timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_lesson_a_reply_beyond_the_largest_message_is_refused_and_one_below_it_is_given(
    tmp_path: Path, leaf: LeafFactory
) -> None:
    house = House(directory=tmp_path, leaf=leaf)
    try:
        house.publish({"model.onnx": growing()}, model="growing")
        asked = refusal(lambda: house.call("ModelInfer", number("growing", 3_000_000)))
        assert asked == (Code.RESOURCE_EXHAUSTED, Reason.REQUEST_TOO_LARGE)
        assert len(house.call("ModelInfer", number("growing", 3)).raw_output_contents[0]) == 12
    finally:
        house.close()


def growing() -> bytes:
    """Gives as many elements as its caller asks for."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["x"], ["y"])],
        "growing",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def listening(process: int) -> set[str]:
    """The addresses that a process takes connections at, as the kernel knows them."""
    sockets = {found[1] for path in Path(f"/proc/{process}/fd").iterdir() if (found := _socket(path))}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                addresses.add(fields[1].partition(":")[0])
    return addresses


def _socket(path: Path) -> re.Match[str] | None:
    try:
        return re.fullmatch(r"socket:\[(\d+)\]", str(path.readlink()))
    except OSError:
        return None


def test_lesson_nothing_listens_anywhere_but_where_it_was_told_to(
    tmp_path: Path, leaf: LeafFactory, auth_port: int
) -> None:
    """Another server said localhost in its documentation, and bound every address."""
    process = run(environment(tmp_path, leaf, auth_port))
    try:
        assert any("ready: rpcs" in line for line in process.stderr)
        assert listening(process.pid) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, twice written
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def both(numbers: np.ndarray, raw_text: bytes, count: int) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name="both", raw_input_contents=[numbers.tobytes(), raw_text])
    request.inputs.add(name="FP32_in", datatype="FP32", shape=numbers.shape)
    request.inputs.add(name="BYTES_in", datatype="BYTES", shape=(count,))
    return request


BAD_TEXT = {
    "a length beyond what is left": (b"\xff\xff\xff\xff", 1),
    "a byte too few": (b"\x02\0\0\0a", 1),
    "a byte too many": (b"\x01\0\0\0ab", 1),
    "fewer elements than the shape": (b"\x01\0\0\0a", 2),
    "more elements than the shape": (b"\x01\0\0\0a\x01\0\0\0b", 1),
    "half a length": (b"\x01\0", 1),
    "no text": (b"\x01\0\0\0\xff", 1),
}


@pytest.mark.parametrize(("raw", "count"), BAD_TEXT.values(), ids=BAD_TEXT)
def test_d5_text_that_does_not_add_up_is_refused_on_the_wire(house: House, raw: bytes, count: int) -> None:
    numbers = np.ones(1, "<f4")
    asked = refusal(lambda: house.call("ModelInfer", both(numbers, raw, count)))
    assert asked == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    answered = house.call("ModelInfer", both(numbers, b"\x01\0\0\0a", 1))
    assert answered.raw_output_contents[1] == b"\x01\0\0\0a"


def test_d5_many_empty_texts_are_walked_and_ten_million_are_refused_by_their_number(house: House) -> None:
    numbers = np.ones(1, "<f4")
    answered = house.call("ModelInfer", both(numbers, bytes(4 * 100_000), 100_000))
    assert len(answered.raw_output_contents[1]) == 400_000
    asked = refusal(lambda: house.call("ModelInfer", both(numbers, bytes(4), 10_000_000)))
    assert asked == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)


@pytest.mark.parametrize(("value", "refused"), [(np.nan, True), (np.inf, True), (-np.inf, True), (1e-40, False)])
def test_d7_a_model_that_takes_no_infinities_refuses_them_on_the_wire(
    house: House, *, value: float, refused: bool
) -> None:
    values = np.array([[1.0, value, 2.0]], "<f4")
    request = wire.ModelInferRequest(model_name="finite", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="FP32_in", datatype="FP32", shape=(1, 3))
    if refused:
        asked = refusal(lambda: house.call("ModelInfer", request))
        assert asked == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    else:
        assert house.call("ModelInfer", request).raw_output_contents[0] == values.tobytes()
