"""The protocol as users meet it: an unmodified tritonclient over mutual TLS with a token."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from casemate.errors import CasemateError, Code, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, SERVING, House
from tests.services.inference.triton_clients import connect
from tests.support.authority import LeafFactory


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    house.publish({"model.onnx": digits.onnx, "README.md": b"digits"})
    yield house
    house.close()


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[triton.InferenceServerClient]:
    with connect(house, house.caller) as client:
        yield client


@pytest.fixture(scope="module")
def trainer(house: House) -> Iterator[triton.InferenceServerClient]:
    with connect(house, house.trainer) as client:
        yield client


def image_input(digits: Digits) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", list(digits.images.shape), "FP32")
    tensor.set_data_from_numpy(digits.images)
    return [tensor]


def test_tritonclient_gets_the_models_own_predictions(client: triton.InferenceServerClient, digits: Digits) -> None:
    result = client.infer("digits", image_input(digits), request_id="seven", priority=1, timeout=1_000_000)
    assert result.as_numpy("label").tolist() == digits.labels.tolist()
    assert (result.get_response().id, result.get_response().model_version) == ("seven", "1")


def test_a_request_names_the_version_and_the_outputs_that_it_wants(
    client: triton.InferenceServerClient, digits: Digits
) -> None:
    wanted = [triton.InferRequestedOutput("label")]
    result = client.infer("digits", image_input(digits), model_version="1", outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["label"]
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.infer("digits", image_input(digits), model_version="2")


def test_a_typed_request_gets_a_typed_answer(house: House, digits: Digits) -> None:
    request = wire.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=(1, 64))
    tensor.contents.fp32_contents.extend(digits.images[0].tolist())
    response = house.call("ModelInfer", request)
    label = next(output for output in response.outputs if output.name == "label")
    assert list(label.contents.int64_contents) == [digits.labels[0]]
    assert not response.raw_output_contents


def test_wrong_tensors_are_refused_with_the_names_of_their_fields(house: House) -> None:
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(4 * 64)])
    tensor = request.inputs.add(name="image", datatype="FP32", shape=(1, 63))
    with pytest.raises(CasemateError) as caught:
        house.call("ModelInfer", request)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert [violation.field for violation in caught.value.violations] == ["inputs[0].shape"]
    tensor.shape[1] = 64
    assert house.call("ModelInfer", request).model_name == "digits"


def test_a_stream_answers_in_order_and_goes_on_after_an_error(
    client: triton.InferenceServerClient, digits: Digits
) -> None:
    answers: queue.SimpleQueue[tuple[object, object]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    wrong = triton.InferInput("picture", [1, 64], "FP32")
    wrong.set_data_from_numpy(digits.images[:1])
    client.async_stream_infer("digits", image_input(digits), request_id="a")
    client.async_stream_infer("digits", [wrong], request_id="b")
    client.async_stream_infer("digits", image_input(digits), request_id="c")
    first, second, third = (answers.get(timeout=PATIENCE) for _ in range(3))
    client.stop_stream()
    assert [first[0].get_response().id, third[0].get_response().id] == ["a", "c"]
    assert third[0].as_numpy("label").tolist() == digits.labels.tolist()
    assert first[0].get_response().parameters["triton_final_response"].bool_param
    assert "inputs[0].name" in str(second[1])


def test_a_stream_ends_with_a_status_when_the_client_asks_for_that(
    client: triton.InferenceServerClient, digits: Digits
) -> None:
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    client.start_stream(lambda error, **_: answers.put(error), headers={"triton_grpc_error": "true"})
    wrong = triton.InferInput("picture", [1, 64], "FP32")
    wrong.set_data_from_numpy(digits.images[:1])
    client.async_stream_infer("digits", [wrong])
    error = answers.get(timeout=PATIENCE)
    client.stop_stream()
    assert error.status() == "StatusCode.INVALID_ARGUMENT"


def test_what_tritonclient_asks_about_the_server_and_the_model(
    house: House, client: triton.InferenceServerClient
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    about = client.get_server_metadata(as_json=True)
    assert about["name"] == "casemate"
    assert "system_shared_memory" not in about["extensions"]
    model = client.get_model_metadata("digits")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in model.inputs] == [
        ("image", "FP32", [-1, 64])
    ]
    assert list(model.versions) == ["1"]
    config = client.get_model_config("digits").config
    assert (config.name, config.input[0].data_type, list(config.input[0].dims)) == ("digits", 11, [-1, 64])


def test_the_index_shows_what_the_caller_may_describe(
    house: House, client: triton.InferenceServerClient, trainer: triton.InferenceServerClient
) -> None:
    index = client.get_model_repository_index()
    assert [(model.name, model.version, model.state) for model in index.models] == [("digits", "1", "READY")]
    stranger = house.client("stranger")
    with connect(house, stranger) as outsider:
        assert not outsider.get_model_repository_index().models
    with connect(house, house.client("caller", tenant="globex")) as neighbour:
        assert not neighbour.get_model_repository_index().models


def test_another_tenants_model_and_an_absent_one_answer_alike(house: House) -> None:
    request = wire.ModelMetadataRequest(name="digits")
    errors = []
    for who, name in [(house.client("caller", tenant="globex"), "digits"), (house.caller, "absent")]:
        request.name = name
        with pytest.raises(CasemateError) as caught:
            house.call("ModelMetadata", request, caller=who)
        errors.append((caught.value.code, caught.value.reason))
    assert errors == [(Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)] * 2


def test_no_token_no_prediction(house: House, digits: Digits) -> None:
    with connect(house, house.caller, token="none") as anonymous, pytest.raises(InferenceServerException) as caught:
        anonymous.infer("digits", image_input(digits))
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


def test_a_stolen_token_is_of_no_use(house: House, digits: Digits) -> None:
    mallory = house.client("mallory")
    with connect(house, mallory, token=house.token(house.caller)) as thief:
        with pytest.raises(InferenceServerException) as caught:
            thief.infer("digits", image_input(digits))
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    with connect(house, house.caller, token=house.token(house.caller)) as owner:
        assert owner.infer("digits", image_input(digits)).as_numpy("label") is not None


def test_statistics_count_what_happened(house: House, digits: Digits, tmp_path: Path, leaf: LeafFactory) -> None:
    with connect(house, house.caller) as client:
        before = client.get_inference_statistics("digits").model_stats[0]
        client.infer("digits", image_input(digits))
        wrong = triton.InferInput("picture", [1, 64], "FP32")
        wrong.set_data_from_numpy(digits.images[:1])
        with pytest.raises(InferenceServerException):
            client.infer("digits", [wrong])
        after = client.get_inference_statistics("digits").model_stats[0]
    assert after.inference_count - before.inference_count == len(digits.images)
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert after.last_inference >= before.last_inference > 0


def test_unload_and_load_by_name(house: House, trainer: triton.InferenceServerClient, digits: Digits) -> None:
    trainer.unload_model("digits")
    assert not trainer.is_model_ready("digits")
    with pytest.raises(InferenceServerException, match="FAILED_PRECONDITION"):
        trainer.infer("digits", image_input(digits))
    assert trainer.get_model_repository_index().models[0].state == "UNAVAILABLE"
    trainer.load_model("digits")
    assert trainer.is_model_ready("digits")


def test_a_model_that_a_load_brings_along_is_refused(trainer: triton.InferenceServerClient, digits: Digits) -> None:
    with pytest.raises(InferenceServerException) as caught:
        trainer.load_model("digits", config="{}", files={"file:1/model.onnx": digits.onnx})
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


def test_shared_memory_and_settings_are_not_served(trainer: triton.InferenceServerClient) -> None:
    assert not trainer.get_system_shared_memory_status().regions
    assert not trainer.get_cuda_shared_memory_status().regions
    refused = [
        lambda: trainer.register_system_shared_memory("a", "/a", 64),
        lambda: trainer.unregister_system_shared_memory("a"),
        lambda: trainer.register_cuda_shared_memory("a", b"aGFuZGxl", 0, 64),
        lambda: trainer.unregister_cuda_shared_memory("a"),
        trainer.get_trace_settings,
        trainer.get_log_settings,
    ]
    for ask in refused:
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_streams_beyond_the_cap_are_told_to_come_back_and_the_others_go_on(
    tmp_path: Path, leaf: LeafFactory, digits: Digits
) -> None:
    house = House(directory=tmp_path, leaf=leaf)  # of its own: other tests' streams may still be ending
    house.publish({"model.onnx": digits.onnx})
    places = SERVING.threads * 3 // 4
    cap = places - places // 4  # of one tenant
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    clients = [connect(house, house.caller) for _ in range(cap + 1)]
    for client in clients[:cap]:
        client.start_stream(lambda error, **_: answers.put(error))
        client.async_stream_infer("digits", image_input(digits))
    assert [answers.get(timeout=PATIENCE) for _ in range(cap)] == [None] * cap
    # Refused at its headers: a request sent on it would find it ended already, or not, as threads happen to run.
    clients[cap].start_stream(lambda error, **_: answers.put(error))
    assert answers.get(timeout=PATIENCE).status() == "StatusCode.RESOURCE_EXHAUSTED"
    clients[0].async_stream_infer("digits", image_input(digits))
    assert answers.get(timeout=PATIENCE) is None
    for client in clients:
        client.stop_stream()
        client.close()
    house.close()


def test_compressed_requests_are_read(client: triton.InferenceServerClient, digits: Digits) -> None:
    result = client.infer("digits", image_input(digits), compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("label"), digits.labels)
