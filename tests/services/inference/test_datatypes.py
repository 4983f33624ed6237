"""Every datatype there and back through a real model, by an unmodified tritonclient and by bare messages."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc as triton

from casemate.errors import CasemateError, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.tensors import DATATYPES, encode_raw, encode_typed
from tests.services.inference.house import House
from tests.services.inference.identity import ELEMENTS, identity
from tests.services.inference.triton_clients import connect
from tests.support.authority import LeafFactory

SPECIAL_FLOATS = [[0.0, -1.5, 65504.0], [float("inf"), -float("inf"), float("nan")]]

VALUES = {
    "BOOL": [[True, False, True], [False, False, True]],
    "BYTES": [["a", "", "é"], ["\0", "a\nb", "x" * 70000]],
    **dict.fromkeys(("FP16", "FP32", "FP64"), SPECIAL_FLOATS),
    "BF16": [[0x3F80, 0x7F80, 0x7FC0], [0x0001, 0x8000, 0xFF80]],
}


def values(name: str) -> NDArray[np.generic]:
    datatype = DATATYPES[name].dtype
    if name in VALUES:
        return np.array(VALUES[name], dtype=datatype)
    limits = np.iinfo(datatype)
    return np.array([[limits.min, limits.max, 0], [1, 2, 3]], dtype=datatype)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    for name in ELEMENTS:
        house.publish({"model.onnx": identity(name)}, model=name.lower())
    house.publish({"model.onnx": identity("BF16", "INT8", "FP32")}, model="mixed")
    yield house
    house.close()


def test_every_datatype_of_the_protocol_is_tried() -> None:
    assert set(ELEMENTS) == set(DATATYPES)


def as_tritonclient_takes_it(name: str) -> NDArray[np.generic]:
    if name == "BYTES":
        return np.array([[element.encode() for element in row] for row in VALUES["BYTES"]], dtype=object)
    return values(name).view(ml_dtypes.bfloat16) if name == "BF16" else values(name)


@pytest.mark.parametrize("name", sorted(ELEMENTS))
def test_a_datatype_comes_back_from_tritonclient_bit_by_bit(house: House, name: str) -> None:
    sent = as_tritonclient_takes_it(name)
    tensor = triton.InferInput(f"{name}_in", list(sent.shape), name)
    tensor.set_data_from_numpy(sent)
    with connect(house, house.caller) as client:
        result = client.infer(name.lower(), [tensor]).as_numpy(f"{name}_out")
        assert client.get_model_metadata(name.lower()).inputs[0].datatype == name
    assert (result.dtype, result.shape) == (sent.dtype, sent.shape)
    assert result.tolist() == sent.tolist() if name == "BYTES" else result.tobytes() == sent.tobytes()


@pytest.mark.parametrize("name", sorted(ELEMENTS))
def test_a_datatype_comes_back_raw_and_typed_where_it_has_a_typed_form(house: House, name: str) -> None:
    sent, datatype = values(name), DATATYPES[name]
    raw = wire.ModelInferRequest(model_name=name.lower(), raw_input_contents=[encode_raw(sent, datatype)])
    raw.inputs.add(name=f"{name}_in", datatype=name, shape=sent.shape)
    answer = house.call("ModelInfer", raw)
    assert list(answer.raw_output_contents) == list(raw.raw_input_contents)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (name, [2, 3])
    if datatype.contents is None:
        return
    typed = wire.ModelInferRequest(model_name=name.lower())
    contents = typed.inputs.add(name=f"{name}_in", datatype=name, shape=sent.shape).contents
    getattr(contents, datatype.contents).extend(encode_typed(sent, datatype))
    answer = house.call("ModelInfer", typed)
    assert not answer.raw_output_contents
    assert answer.outputs[0].contents.SerializeToString() == contents.SerializeToString()


def test_brain_floats_live_beside_numbers_in_one_model(house: House) -> None:
    names = ("BF16", "INT8", "FP32")
    request = wire.ModelInferRequest(model_name="mixed")
    for name in names:
        request.inputs.add(name=f"{name}_in", datatype=name, shape=(2, 3))
        request.raw_input_contents.append(encode_raw(values(name), DATATYPES[name]))
    answer = house.call("ModelInfer", request)
    assert list(answer.raw_output_contents) == list(request.raw_input_contents)


def test_a_model_that_takes_text_beside_brain_floats_is_refused_when_it_is_published(house: House) -> None:
    with pytest.raises(CasemateError) as caught:
        house.publish({"model.onnx": identity("BF16", "BYTES")}, model="both")
    assert caught.value.reason is Reason.MODEL_INVALID
