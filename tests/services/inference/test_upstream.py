"""Models on back ends: the same door, the same protocol, nothing of the caller behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton

from casemate.errors import CasemateError, Code, ConfigurationError, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.certificates import CertificateSource
from casemate.transport.local_channel import local_channel
from casemate.transport.server import SyncServer, build_server
from services.inference.backends import Backend, read_backends
from tests.services.inference.back_end import LocalServer, Sums
from tests.services.inference.house import NO_WAIT, TENANT, House
from tests.services.inference.triton_clients import connect
from tests.support.authority import LeafFactory

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
SUMS = {
    "backend": "sidecar",
    "model": "sums",
    "inputs": [{"name": "rows", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1]}],
}


def upstream_file(**changes: object) -> dict[str, bytes]:
    return {"upstream.json": json.dumps({**SUMS, **changes}).encode()}


def backend(address: str, *, transport: str = "local", name: str = "sidecar", tenant: str = TENANT) -> Backend:
    return Backend(
        name=name,
        address=address,
        transport=transport,
        tenants=frozenset({tenant}),
        timeout=timedelta(seconds=20),
    )


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def sidecar(sums: Sums) -> Iterator[LocalServer]:
    server = LocalServer(sums.service(), "127.0.0.1:0", grpc.LocalConnectionType.LOCAL_TCP)
    yield server
    server.stop()


@pytest.fixture
def open_house(tmp_path: Path, leaf: LeafFactory) -> Iterator[Callable[..., House]]:
    """Makes houses with the back ends given."""
    houses: list[House] = []

    def make(*known: Backend) -> House:
        houses.append(House(directory=tmp_path, leaf=leaf, backends={each.name: each for each in known}))
        return houses[-1]

    yield make
    for house in houses:
        house.close()


@pytest.fixture
def house(open_house: Callable[..., House], sidecar: LocalServer) -> House:
    return open_house(backend(f"127.0.0.1:{sidecar.port}"))


def request(rows: np.ndarray = ROWS) -> wire.ModelInferRequest:
    message = wire.ModelInferRequest(model_name="sums", raw_input_contents=[rows.tobytes()])
    message.inputs.add(name="rows", datatype="FP32", shape=rows.shape)
    return message


def refusal(ask: Callable[[], object]) -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        ask()
    assert "canary" not in str(caught.value)
    return caught.value.code, caught.value.reason


def predicted(house: House) -> list[float]:
    tensor = triton.InferInput("rows", list(ROWS.shape), "FP32")
    tensor.set_data_from_numpy(ROWS)
    with connect(house, house.caller) as client:
        return client.infer("sums", [tensor]).as_numpy("sum").tolist()


def test_a_sidecar_on_loopback_answers_through_our_door_and_learns_nothing_of_the_caller(
    house: House, sums: Sums
) -> None:
    house.publish(upstream_file(), model="sums")
    assert predicted(house) == [3.0, 12.0]
    seen, metadata = sums.seen[-1]
    assert (seen.model_name, seen.id, len(seen.parameters)) == ("sums", "", 0)
    assert not {"authorization", "triton-grpc-protocol"} & set(metadata)
    about = house.call("ModelMetadata", wire.ModelMetadataRequest(name="sums"))
    assert (about.platform, about.inputs[0].name, list(about.inputs[0].shape)) == ("open_inference", "rows", [-1, 3])


def test_a_sidecar_behind_a_unix_socket_answers(
    open_house: Callable[..., House], sums: Sums, tmp_path_factory: pytest.TempPathFactory
) -> None:
    socket = f"unix:{tmp_path_factory.mktemp('s')}/s"
    server = LocalServer(sums.service(), socket, grpc.LocalConnectionType.UDS)
    house = open_house(backend(socket))
    house.publish(upstream_file(), model="sums")
    assert predicted(house) == [3.0, 12.0]
    server.stop()


def remote(sums: Sums, leaf: LeafFactory, service: str) -> SyncServer:
    server = build_server(
        source=CertificateSource(leaf("service", service=service)),
        services=[sums.service()],
        interceptors=(),
        address="127.0.0.1:0",
        lame_duck=NO_WAIT,
    )
    server.start()
    return server


def test_a_back_end_over_mutual_tls_must_prove_its_own_name(
    open_house: Callable[..., House], sums: Sums, leaf: LeafFactory
) -> None:
    right, wrong = remote(sums, leaf, "triton"), remote(sums, leaf, "datasets")
    house = open_house(
        backend(f"127.0.0.1:{right.port}", transport="mtls", name="triton"),
        backend(f"127.0.0.1:{wrong.port}", transport="mtls", name="other"),
    )
    try:
        assert refusal(lambda: house.publish(upstream_file(backend="other"), model="sums"))[0] is Code.UNAVAILABLE
        house.publish(upstream_file(backend="triton"), model="sums")
        assert predicted(house) == [3.0, 12.0]
    finally:
        right.stop(NO_WAIT)
        wrong.stop(NO_WAIT)


@pytest.mark.parametrize("typed", [False, True])
def test_raw_and_typed_answers_are_read(house: House, sums: Sums, *, typed: bool) -> None:
    sums.typed = typed
    house.publish(upstream_file(), model="sums")
    assert predicted(house) == [3.0, 12.0]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID_ARGUMENT),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
        (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE),
        (grpc.StatusCode.NOT_FOUND, Code.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED),
        (grpc.StatusCode.UNAUTHENTICATED, Code.INTERNAL),
        (grpc.StatusCode.INTERNAL, Code.INTERNAL),
    ],
)
def test_a_back_ends_refusal_keeps_its_kind_and_loses_its_text(
    house: House, sums: Sums, answer: grpc.StatusCode, code: Code
) -> None:
    house.publish(upstream_file(), model="sums")
    sums.answer = answer
    assert refusal(lambda: house.call("ModelInfer", request()))[0] is code
    sums.answer = None
    assert predicted(house) == [3.0, 12.0]


def answer(**changes: object) -> wire.ModelInferResponse:
    output = {"name": "sum", "datatype": "FP32", "shape": [2], **changes}
    return wire.ModelInferResponse(
        outputs=[wire.ModelInferResponse.InferOutputTensor(**output)], raw_output_contents=[bytes(8)]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        wire.ModelInferResponse(),
        answer(name="other"),
        answer(datatype="INT32"),
        answer(shape=[2, 1]),
        answer(shape=[3]),
        answer(shape=[-1]),
        answer(shape=[2**62]),
        wire.ModelInferResponse(outputs=[*answer().outputs, *answer().outputs], raw_output_contents=[bytes(8)] * 2),
        wire.ModelInferResponse(outputs=answer().outputs, raw_output_contents=[bytes(8), bytes(8)]),
        wire.ModelInferResponse(outputs=answer().outputs),
    ],
    ids=["nothing", "name", "datatype", "rank", "length", "negative", "huge", "twice", "too-many-raw", "no-contents"],
)
def test_an_answer_that_is_not_what_was_signed_never_reaches_the_caller(
    house: House, sums: Sums, wrong: wire.ModelInferResponse
) -> None:
    house.publish(upstream_file(), model="sums")
    sums.answer = wrong
    assert refusal(lambda: house.call("ModelInfer", request()))[0] is Code.INTERNAL
    sums.answer = answer()
    assert house.call("ModelInfer", request()).raw_output_contents[0] == bytes(8)


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "another"},
        {"backend": 7},
        {"address": "10.0.0.1:1"},
        {"inputs": []},
        {"inputs": [{"name": "rows", "datatype": "FP32"}]},
        {"inputs": [{"name": "rows", "datatype": "FP31", "shape": [-1, 3]}]},
        {"inputs": [{"name": "rows", "datatype": "FP32", "shape": [0, 3]}]},
        {"inputs": [{"name": "rows", "datatype": "FP32", "shape": [True, 3]}]},
        {"inputs": SUMS["inputs"] * 2},
        {"inputs": [{"name": "rows", "datatype": "FP64", "shape": [-1, 3]}]},
        {"inputs": [{"name": "columns", "datatype": "FP32", "shape": [-1, 3]}]},
        {"outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1, 7]}]},
    ],
    ids=str,
)
def test_a_file_that_names_what_it_may_not_or_differs_from_the_back_end_is_refused(
    house: House, changes: dict[str, object]
) -> None:
    assert refusal(lambda: house.publish(upstream_file(**changes), model="sums")) == (
        Code.INVALID_ARGUMENT,
        Reason.MODEL_INVALID,
    )
    assert not house.auth.recorded
    house.publish(upstream_file(), model="sums")


def test_a_back_end_of_other_tenants_is_like_none(open_house: Callable[..., House], sidecar: LocalServer) -> None:
    house = open_house(backend(f"127.0.0.1:{sidecar.port}", tenant="globex"))
    assert refusal(lambda: house.publish(upstream_file(), model="sums"))[1] is Reason.MODEL_INVALID


def test_a_version_has_one_thing_that_runs(house: House) -> None:
    both = {**upstream_file(), "model.onnx": b"onnx"}
    assert refusal(lambda: house.publish(both, model="sums"))[1] is Reason.MODEL_INVALID


def test_a_back_end_that_is_not_ready_is_tried_again(house: House, sums: Sums) -> None:
    sums.ready = False
    assert refusal(lambda: house.publish(upstream_file(), model="sums"))[0] is Code.UNAVAILABLE
    sums.ready = True
    house.publish(upstream_file(), model="sums")
    assert predicted(house) == [3.0, 12.0]


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001",
        "10.0.0.1:8001",
        "0.0.0.0:8001",
        "[::]:8001",
        "unix:relative",
        "dns:///127.0.0.1:1",
        "127.0.0.1",
    ],
)
def test_plaintext_never_leaves_the_machine(target: str) -> None:
    with pytest.raises(ConfigurationError):
        local_channel(target)
    for allowed in ("127.0.0.1:1", "[::1]:1", "unix:/run/s"):
        local_channel(allowed).close()


GOOD = '[triton]\naddress = "a.b:1"\ntransport = "mtls"\ntenants = ["acme"]\n'


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("mtls", "insecure"),
        GOOD.replace("mtls", "local"),
        GOOD.replace('["acme"]', "[]"),
        GOOD.replace('["acme"]', '"acme"'),
        GOOD.replace("a.b:1", "a.b"),
        GOOD.replace("[triton]", '["../x"]'),
        GOOD + "password = 1\n",
        GOOD + 'timeout = "soon"\n',
        "triton = 1\n",
        "not toml",
    ],
    ids=str,
)
def test_a_file_of_back_ends_that_is_not_exactly_one_keeps_the_service_from_starting(tmp_path: Path, text: str) -> None:
    file = tmp_path / "backends.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"backends\.toml"):
        read_backends(file)
    file.write_text(GOOD)
    known = read_backends(file)["triton"]
    assert (known.address, known.transport, known.tenants) == ("a.b:1", "mtls", frozenset({"acme"}))
    assert read_backends(None) == {}
