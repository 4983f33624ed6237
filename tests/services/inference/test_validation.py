"""What a request's tensors must be, each refusal beside its twin."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from casemate.errors import InvalidRequest
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.tensors import (
    BYTES_ELEMENT_COST,
    DATATYPES,
    TYPED_ELEMENT_COST,
    TensorSpec,
    encode_raw,
    encode_typed,
    encoded_bytes,
)
from services.inference.validation import MAX_TENSORS, Limits, Tensors, read_tensors

IMAGE = TensorSpec("image", DATATYPES["FP32"], (-1, 4))
NAMES = TensorSpec("names", DATATYPES["BYTES"], (-1,))
LABEL = TensorSpec("label", DATATYPES["INT64"], (-1,))


def read(request: wire.ModelInferRequest, *inputs: TensorSpec, limits: Limits | None = None) -> Tensors:
    return read_tensors(request, inputs=inputs or (IMAGE,), outputs=(LABEL,), limits=limits or Limits())


def raw_request(shape: tuple[int, ...] = (2, 4), raw: bytes = bytes(32)) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[raw])
    request.inputs.add(name="image", datatype="FP32", shape=shape)
    return request


def typed_request() -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=(1, 4)).contents.fp32_contents.extend([1, 2, 3, 4])
    return request


def violations(request: wire.ModelInferRequest, *inputs: TensorSpec, limits: Limits | None = None) -> set[str]:
    with pytest.raises(InvalidRequest) as caught:
        read(request, *inputs, limits=limits)
    return {violation.field for violation in caught.value.violations}


def test_raw_contents_are_read_without_a_copy_and_answered_raw() -> None:
    tensors = read(raw_request(raw=struct.pack("<8f", *range(8))))
    assert tensors.inputs["image"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not tensors.inputs["image"].flags.owndata
    assert (tensors.raw_reply, tensors.rows) == (True, 2)


@pytest.mark.parametrize("shape", [(2, 4), (1, 4), (8, 1), (4, 2), (2, 4, 1), (0, 4), (-2, -4), (2**31, 4), ()])
@pytest.mark.parametrize("length", [0, 16, 31, 32, 33])
@pytest.mark.parametrize("name", ["FP32", "FP31", "INT32", "BOOL", "BYTES"])
def test_the_short_way_of_plain_requests_judges_as_the_long_way_does(
    shape: tuple[int, ...], length: int, name: str
) -> None:
    request = raw_request(shape, bytes(length))
    request.inputs[0].datatype = name
    longer = wire.ModelInferRequest()
    longer.CopyFrom(request)
    longer.parameters["of no meaning to us"].bool_param = True
    judged = []
    for each in (request, longer):
        try:
            tensors = read(each)
            judged.append((tensors.inputs["image"].tobytes(), tensors.inputs["image"].shape, tensors.rows))
        except InvalidRequest as error:
            judged.append(error.violations)
    assert judged[0] == judged[1]


def test_typed_contents_are_read_and_answered_typed() -> None:
    tensors = read(typed_request())
    assert tensors.inputs["image"].tolist() == [[1, 2, 3, 4]]
    assert tensors.raw_reply is False


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        ((-1, 4), b""),
        ((0, 4), b""),
        ((2**63 - 1, 4), bytes(32)),
        ((2**62, 4), bytes(32)),
        ((2, 5), bytes(40)),
        ((8,), bytes(32)),
        ((2, 4, 1), bytes(32)),
        ((), bytes(4)),
    ],
)
def test_a_shape_that_is_not_the_models_is_refused_before_anything_is_allocated(
    shape: tuple[int, ...], raw: bytes
) -> None:
    assert violations(raw_request(shape, raw)) == {"inputs[0].shape"}


@pytest.mark.parametrize("length", [31, 33, 0])
def test_raw_contents_of_another_length_than_the_shape_says_are_refused(length: int) -> None:
    request = raw_request(raw=bytes(length))
    assert violations(request) == {"raw_input_contents[0]"}


def test_a_product_beyond_the_cap_is_refused_and_one_below_it_is_read() -> None:
    assert violations(raw_request(), limits=Limits(elements=7)) == {"inputs"}
    assert read(raw_request(), limits=Limits(elements=8)).rows == 2


def test_elements_that_become_objects_are_judged_by_the_memory_that_they_will_take() -> None:
    limits = Limits(object_bytes=3 * BYTES_ELEMENT_COST + 12)
    assert violations(bytes_request(bytes(16), 4), NAMES, limits=limits) == {"raw_input_contents[0]"}
    assert violations(bytes_request(b"\x01\x00\x00\x00a" * 3, 3), NAMES, limits=limits) == {"raw_input_contents[0]"}
    assert read(bytes_request(bytes(12), 3), NAMES, limits=limits).rows == 3
    assert violations(typed_request(), limits=Limits(object_bytes=4 * TYPED_ELEMENT_COST - 1)) == {"inputs[0].contents"}
    assert read(typed_request(), limits=Limits(object_bytes=4 * TYPED_ELEMENT_COST)).rows == 1
    assert read(raw_request(), limits=Limits(object_bytes=0)).rows == 2


def test_four_million_short_texts_are_refused_before_one_of_them_is_made() -> None:
    count = 4_000_000
    request = bytes_request(b"\x02\x00\x00\x00ab" * count, count)
    tracemalloc.start()
    try:
        assert violations(request, NAMES) == {"raw_input_contents[0]"}
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024 + len(request.raw_input_contents[0])
    finally:
        tracemalloc.stop()


def test_the_length_of_a_reply_is_that_of_its_texts_and_not_of_the_pointers_to_them() -> None:
    texts = np.array(["a" * 1000, "é", b"\xff"], dtype=object)
    assert encoded_bytes(texts, DATATYPES["BYTES"]) == len(encode_raw(texts, DATATYPES["BYTES"])) == 1015
    assert encoded_bytes(np.zeros((2, 3), "<f4"), DATATYPES["FP32"]) == 24


def test_raw_and_typed_contents_do_not_mix() -> None:
    request = raw_request((1, 4), bytes(16))
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    assert violations(request) == {"inputs[0].contents"}
    request.inputs[0].ClearField("contents")
    assert read(request).rows == 1


def test_one_raw_entry_per_input() -> None:
    request = raw_request()
    request.raw_input_contents.append(bytes(32))
    assert violations(request) == {"raw_input_contents"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda tensor: setattr(tensor, "name", "picture"), "inputs[0].name"),
        (lambda tensor: setattr(tensor, "datatype", "FP64"), "inputs[0].datatype"),
        (lambda tensor: setattr(tensor, "datatype", "COMPLEX"), "inputs[0].datatype"),
        (lambda tensor: tensor.contents.fp32_contents.append(5), "inputs[0].contents"),
        (lambda tensor: tensor.contents.ClearField("fp32_contents"), "inputs[0].contents"),
        (lambda tensor: tensor.contents.int64_contents.append(1), "inputs[0].contents"),
    ],
    ids=["other-name", "other-datatype", "no-datatype", "one-too-many", "none", "a-second-field"],
)
def test_what_does_not_fit_is_named_by_place(
    change: Callable[[wire.ModelInferRequest.InferInputTensor], object], field: str
) -> None:
    request = typed_request()
    change(request.inputs[0])
    assert field in violations(request)


def test_every_problem_is_reported_at_once_and_never_repeats_what_was_sent() -> None:
    request = typed_request()
    request.inputs.add(name="canary", datatype="FP32", shape=(1, 4))
    request.outputs.add(name="canary")
    request.parameters["sequence_id"].int64_param = 7
    with pytest.raises(InvalidRequest) as caught:
        read(request)
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"inputs[1].name", "outputs[0].name", "parameters"}
    assert not any("canary" in violation.description for violation in caught.value.violations)


def test_an_input_given_twice_or_not_at_all_is_refused() -> None:
    twice = raw_request()
    twice.inputs.append(twice.inputs[0])
    twice.raw_input_contents.append(bytes(32))
    assert violations(twice) == {"inputs[1].name"}
    assert violations(wire.ModelInferRequest()) == {"inputs.image"}


def test_a_flood_of_empty_tensors_is_refused_by_their_number() -> None:
    request = wire.ModelInferRequest(inputs=[wire.ModelInferRequest.InferInputTensor()] * (MAX_TENSORS + 1))
    assert violations(request) == {"inputs"}


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
def test_tensor_parameters_that_ask_for_what_is_not_served_are_refused(name: str) -> None:
    request = raw_request()
    request.inputs[0].parameters[name].string_param = "region"
    assert violations(request) == {"inputs[0].parameters"}


def bytes_request(raw: bytes, count: int) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="names", datatype="BYTES", shape=(count,))
    return request


def test_bytes_elements_are_walked() -> None:
    raw = b"\x01\x00\x00\x00a\x00\x00\x00\x00\x02\x00\x00\x00\xc3\xa9"
    assert read(bytes_request(raw, 3), NAMES).inputs["names"].tolist() == ["a", "", "é"]


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"\xff\xff\xff\xffa", 1),
        (b"\x01\x00\x00\x00a", 2),
        (b"\x01\x00\x00\x00ab", 1),
        (b"\x01\x00\x00", 1),
        (b"", 4_000_000),
        (b"\x01\x00\x00\x00\xff", 1),
    ],
)
def test_bytes_that_do_not_add_up_or_are_no_text_are_refused(raw: bytes, count: int) -> None:
    assert violations(bytes_request(raw, count), NAMES) == {"raw_input_contents[0]"}


def test_booleans_are_zero_or_one() -> None:
    flags = TensorSpec("flags", DATATYPES["BOOL"], (2,))
    request = wire.ModelInferRequest(raw_input_contents=[b"\x00\x02"])
    request.inputs.add(name="flags", datatype="BOOL", shape=(2,))
    assert violations(request, flags) == {"raw_input_contents[0]"}
    request.raw_input_contents[0] = b"\x00\x01"
    assert read(request, flags).inputs["flags"].tolist() == [False, True]


def test_a_narrow_integer_does_not_wrap() -> None:
    small = TensorSpec("small", DATATYPES["INT8"], (1,))
    request = wire.ModelInferRequest()
    request.inputs.add(name="small", datatype="INT8", shape=(1,)).contents.int_contents.append(128)
    assert violations(request, small) == {"inputs[0].contents"}
    request.inputs[0].contents.int_contents[0] = -128
    assert read(request, small).inputs["small"].tolist() == [-128]


@pytest.mark.parametrize("name", sorted(DATATYPES))
def test_every_datatype_survives_the_wire_raw_and_typed(name: str) -> None:
    datatype = DATATYPES[name]
    values = ["a", "é", ""] if name == "BYTES" else [0, 1, 1]
    array = np.array(values, dtype=datatype.dtype)
    spec = TensorSpec("x", datatype, (3,))
    raw = wire.ModelInferRequest(raw_input_contents=[encode_raw(array, datatype)])
    raw.inputs.add(name="x", datatype=name, shape=(3,))
    assert read(raw, spec).inputs["x"].tolist() == array.tolist()
    typed = wire.ModelInferRequest()
    tensor = typed.inputs.add(name="x", datatype=name, shape=(3,))
    if datatype.contents is None:
        assert violations(typed, spec) == {"inputs[0].contents"}
        return
    getattr(tensor.contents, datatype.contents).extend(encode_typed(array, datatype))
    assert read(typed, spec).inputs["x"].tolist() == array.tolist()
