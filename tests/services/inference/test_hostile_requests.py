"""Requests that are large in memory, large on the wire, or about what the caller may not see (rows D1–D9, D23, D24)."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.message import DecodeError

from casemate.errors import CasemateError, Code, InvalidRequest, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.predictions import varint
from services.inference.servicers import OPEN_INFERENCE
from services.inference.wire_guard import MAX_FIELDS, UNWALKED_BYTES, InferRequest, parse_infer_request
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, SERVING, TENANT, House, meant
from tests.services.inference.identity import identity
from tests.support.authority import LeafFactory

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    house.publish({"model.onnx": digits.onnx})
    yield house
    house.close()


def call_raw(house: House, method: str, raw: bytes) -> object:
    """Sends bytes that no honest client would."""
    stub = house.channel(house.trainer).unary_unary(f"/{OPEN_INFERENCE}/{method}", None, None)
    with meant():
        return stub(raw, metadata=house.metadata(house.trainer), timeout=PATIENCE)


def refusal(ask: Callable[[], object]) -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        ask()
    return caught.value.code, caught.value.reason


FLOODS = {
    "empty inputs": b"\x2a\x00",
    "empty outputs": b"\x32\x00",
    "empty parameters": b"\x22\x00",
    "empty raw contents": b"\x3a\x00",
    "unknown": b"\xf8\x01\x01",
}
GROUP = b"\xfb\x01\xfc\x01"
"""An empty group in a field that the message does not have: protobuf takes it, and a walk that gave up there would
leave the flood behind it to the parser."""


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_d8_four_mebibytes_of_empty_fields_are_refused_and_the_next_request_is_answered(
    house: House, digits: Digits, flood: bytes
) -> None:
    assert refusal(lambda: call_raw(house, "ModelInfer", flood * (4 * MIB // len(flood))))[0] is Code.INVALID_ARGUMENT
    assert house.predict(digits.images) == digits.labels.tolist()


MEASURE = """
import resource
from google.protobuf.message import DecodeError
from casemate.errors import InvalidRequest
from services.inference.wire_guard import parse_infer_request

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

flood = {before!r} + {flood!r} * (4 * 2**20 // {length})
before = peak()
try:
    parse_infer_request(flood)
except (InvalidRequest, DecodeError):
    print(peak() - before)
"""


def nested(*tags: int) -> bytes:
    """An input whose nested messages are full of empty ones."""
    inner = b"\x42\x00" * 1000
    for tag in tags:
        size = len(inner)
        inner = bytes([tag, size & 0x7F | 0x80, size >> 7]) + inner
    return inner


@pytest.mark.parametrize("before", [b"", GROUP], ids=["bare", "behind a group"])
@pytest.mark.parametrize("flood", [b"\x2a\x00", nested(0x2A, 0x2A)], ids=["inputs", "elements of contents"])
def test_d8_a_flood_takes_less_than_four_times_its_size_in_memory(flood: bytes, before: bytes) -> None:
    code = MEASURE.format(flood=flood, length=len(flood), before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 4 * 4 * MIB


def typed(count: int) -> bytes:
    request = wire.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="INT64", shape=[count]).contents.int64_contents.extend([1] * count)
    return request.SerializeToString()


def test_typed_elements_are_counted_before_they_grow_eightfold() -> None:
    assert len(parse_infer_request(typed(100_000)).inputs[0].contents.int64_contents) == 100_000
    with pytest.raises(InvalidRequest):
        parse_infer_request(typed(4 * MIB + 1))


def whole(parsed: InferRequest) -> wire.ModelInferRequest:
    """A request in one piece, however it was parsed."""
    if isinstance(parsed, wire.ModelInferRequest):
        return parsed
    message = wire.ModelInferRequest(
        model_name=parsed.model_name, model_version=parsed.model_version, id=parsed.id, inputs=parsed.inputs
    )
    message.outputs.extend(parsed.outputs)
    for name, parameter in parsed.parameters.items():
        message.parameters[name].CopyFrom(parameter)
    message.raw_input_contents.extend(bytes(contents) for contents in parsed.raw_input_contents)
    return message


def test_a_large_tensor_and_many_small_fields_below_the_cap_are_read() -> None:
    request = wire.ModelInferRequest(raw_input_contents=[bytes(4 * MIB)])
    request.inputs.add(name="x", shape=[-1] * 10).parameters["p"].string_param = "v"
    assert whole(parse_infer_request(request.SerializeToString())) == request
    elements = wire.ModelInferRequest()
    elements.inputs.add().contents.bytes_contents.extend([b"text"] * (MAX_FIELDS - 3))
    assert len(elements.SerializeToString()) > UNWALKED_BYTES
    assert whole(parse_infer_request(elements.SerializeToString())) == elements
    elements.inputs[0].contents.bytes_contents.extend([b"text"] * 2)
    with pytest.raises(InvalidRequest):
        parse_infer_request(elements.SerializeToString())


def test_a_large_request_is_read_alike_wherever_its_raw_contents_stand() -> None:
    """They are cut out before the rest is parsed; what is left must be the same message."""
    first, second, empty = b"1" * 70_000, b"2" * 300, b""
    raw = [b"\x3a" + varint(len(contents)) + contents for contents in (first, second, empty)]
    head = wire.ModelInferRequest(model_name="a", id="7").SerializeToString()
    rest = wire.ModelInferRequest(model_name="b", model_version="3")
    rest.inputs.add(name="x", datatype="FP32", shape=[1])
    rest.outputs.add(name="y")
    rest.parameters["priority"].int64_param = 1
    tail = rest.SerializeToString()
    for pieces in itertools.permutations((head, *raw, tail)):
        message = b"".join(pieces)
        assert whole(parse_infer_request(message)) == wire.ModelInferRequest.FromString(message)


@pytest.mark.parametrize("name", ["BOOL", "FP32", "BYTES", "BF16"])
@pytest.mark.parametrize("count", [3, 120_000])
def test_a_tensor_comes_back_the_same_whether_it_is_copied_or_not(house: House, name: str, count: int) -> None:
    model = f"large-{name.lower()}"
    if house.service.catalogue.entry((TENANT, model)).current is None:
        house.publish({"model.onnx": identity(name, shape=(None,))}, model=model)
    width = {"BOOL": 1, "FP32": 4, "BYTES": 5, "BF16": 2}[name]
    raw = {"BOOL": b"\x01", "BYTES": b"\x01\0\0\0a"}.get(name, bytes(range(1, width + 1))) * count
    request = wire.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=f"{name}_in", datatype=name, shape=(count,))
    assert house.call("ModelInfer", request).raw_output_contents[0] == raw
    if name == "BOOL":
        request.raw_input_contents[0] = b"\x02" + raw[1:]
        assert refusal(lambda: house.call("ModelInfer", request)) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)


@pytest.mark.parametrize("end", [b"\x2a\xff\xff\xff\xff\x0f", b"\x2a", b"\xff" * 12, b"\x2b", b"\x2a\x05\x2a\xff"])
def test_bytes_that_are_no_message_are_refused_by_the_parser_as_ever(house: House, end: bytes) -> None:
    raw = b"\x3a\x80\x80\x05" + bytes(0x14000) + end
    with pytest.raises(DecodeError):
        parse_infer_request(raw)
    assert refusal(lambda: call_raw(house, "ModelInfer", raw))[0] is Code.INVALID_ARGUMENT


def test_a_method_without_tensors_takes_no_large_message(house: House) -> None:
    request = wire.ModelReadyRequest(name="digits", version="1" * 2 * MIB).SerializeToString()
    assert refusal(lambda: call_raw(house, "ModelReady", request)) == (
        Code.RESOURCE_EXHAUSTED,
        Reason.REQUEST_TOO_LARGE,
    )
    assert house.call("ModelReady", wire.ModelReadyRequest(name="digits", version="1")).ready


def image(rows: int, **changes: object) -> wire.ModelInferRequest:
    raw = bytes(4 * 64 * rows)
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[raw], **changes)
    request.inputs.add(name="image", datatype="FP32", shape=(rows, 64))
    return request


def unary(channel: grpc.Channel, message: bytes, metadata: object) -> object:
    return channel.unary_unary(f"/{OPEN_INFERENCE}/ModelInfer", None, None)(
        message, metadata=metadata, timeout=PATIENCE
    )


def streamed(channel: grpc.Channel, message: bytes, metadata: object) -> object:
    method = channel.stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
    return list(method(iter([message]), metadata=metadata, timeout=PATIENCE))


@pytest.mark.parametrize("send", [unary, streamed])
def test_d9_a_tensor_beyond_the_largest_message_is_refused(
    house: House, digits: Digits, send: Callable[[grpc.Channel, bytes, object], object]
) -> None:
    message = image(SERVING.max_message_bytes // 256 + 1).SerializeToString()
    name = [("grpc.ssl_target_name_override", "inference.casemate.internal")]
    target, credentials = f"127.0.0.1:{house.service.port}", house.credentials(house.caller)
    with (
        grpc.secure_channel(target, credentials, options=name) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        send(channel, message, house.metadata(house.caller))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert house.predict(digits.images) == digits.labels.tolist()


@pytest.mark.parametrize("rows", [2**31, 2**63 - 1, 2**33 // 256])
def test_d1_and_d9_a_shape_of_gibibytes_with_few_bytes_is_refused_by_its_size_alone(house: House, rows: int) -> None:
    request = image(1)
    request.inputs[0].shape[0] = rows
    assert refusal(lambda: house.call("ModelInfer", request)) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    request.inputs[0].shape[0] = 1
    assert house.call("ModelInfer", request).model_version == "1"


def without_input(request: wire.ModelInferRequest) -> None:
    del request.inputs[:]
    del request.raw_input_contents[:]


def with_typed(request: wire.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.append(1)


def shape(*dimensions: int) -> Callable[[wire.ModelInferRequest], None]:
    def change(request: wire.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = dimensions

    return change


def datatype(name: str) -> Callable[[wire.ModelInferRequest], None]:
    return lambda request: setattr(request.inputs[0], "datatype", name)


def raw(length: int) -> Callable[[wire.ModelInferRequest], None]:
    def change(request: wire.ModelInferRequest) -> None:
        request.raw_input_contents[0] = bytes(length)

    return change


def one_more(name: str) -> Callable[[wire.ModelInferRequest], None]:
    def change(request: wire.ModelInferRequest) -> None:
        request.inputs.add(name=name, datatype="FP32", shape=(1, 64))
        request.raw_input_contents.append(bytes(256))

    return change


HOSTILE = {
    "d1 minus one": shape(-1, 64),
    "d1 no dimension": shape(),
    "d1 zero": shape(0, 64),
    "d1 overflow": shape(2**62, 4),
    "d2 a byte less": raw(255),
    "d2 a byte more": raw(257),
    "d2 one entry too many": lambda request: request.raw_input_contents.append(b""),
    "d3 both forms": with_typed,
    "d4 unknown datatype": datatype("FP31"),
    "d4 another datatype": datatype("BF16"),
    "d6 missing input": without_input,
    "d6 input twice": lambda request: (
        request.inputs.append(request.inputs[0]),
        request.raw_input_contents.append(b""),
    ),
    "d6 extra input": lambda request: (request.inputs.add(name="more"), request.raw_input_contents.append(b"")),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_d1_to_d6_a_request_that_lies_is_refused_on_the_wire_and_the_model_never_runs(
    house: House, change: Callable[[wire.ModelInferRequest], object]
) -> None:
    def executions() -> int:
        answer = house.call("ModelStatistics", wire.ModelStatisticsRequest(name="digits"))
        return answer.model_stats[0].execution_count

    request, before = image(1), executions()
    change(request)
    assert refusal(lambda: house.call("ModelInfer", request)) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert executions() == before
    assert house.call("ModelInfer", image(1)).model_name == "digits"
    assert executions() == before + 1


def test_d6_a_name_that_is_no_utf8_is_refused(house: House) -> None:
    message = image(1).SerializeToString().replace(b"image", b"im\xffge")
    assert refusal(lambda: call_raw(house, "ModelInfer", message))[0] is Code.INVALID_ARGUMENT


ABOUT_MODELS = {
    "ModelReady": wire.ModelReadyRequest,
    "ModelMetadata": wire.ModelMetadataRequest,
    "ModelConfig": wire.ModelConfigRequest,
    "ModelStatistics": wire.ModelStatisticsRequest,
}


@pytest.mark.parametrize("method", ABOUT_MODELS)
def test_d24_a_model_that_the_caller_may_not_describe_is_as_absent_as_one_that_is_not_there(
    house: House, method: str
) -> None:
    stranger, neighbour = house.client("stranger"), house.client("caller", tenant="globex")
    asked = [(stranger, "digits"), (stranger, "absent"), (neighbour, "digits"), (house.caller, "absent")]
    seen = set()
    for who, name in asked:
        with pytest.raises(CasemateError) as caught:
            house.call(method, ABOUT_MODELS[method](name=name), caller=who)
        seen.add((caught.value.code, caught.value.reason, caught.value.public_message, caught.value.violations))
    assert len(seen) == 1
    assert next(iter(seen))[0] is Code.NOT_FOUND
    assert house.call(method, ABOUT_MODELS[method](name="digits"))
