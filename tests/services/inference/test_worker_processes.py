"""Two real workers on one port, of which one dies, hangs, stops or takes too much memory (row D21)."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from casemate.errors import Code, Reason
from casemate.gate.adapters.audit_file import verify_chain
from casemate.gate.core.quota import Shares
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.status import from_rpc_error
from services.inference.board import SupervisorBoard, WorkerBoard
from services.inference.seat import Seat, share_out
from services.inference.servicers import OPEN_INFERENCE
from tests.services.inference.conftest import Digits
from tests.services.inference.hall import Hall
from tests.services.inference.house import PATIENCE, SERVING, House
from tests.services.inference.nets import dividing, looping
from tests.support.authority import LeafFactory

ENDLESS = 2**60
HUNDRED_MILLION = 100_000_000
SHORT = {
    "WORKER_LONGEST_RUN": "1s",
    "STREAM_IDLE": "1s",
    "MODEL_MEMORY_MIB": "256",
    "UNSAFE_DIVISION": "true",
}
LEAST = -(2**63)


def hungry() -> bytes:
    """Takes four bytes of memory for each of the elements that its caller asks for."""
    nodes = [
        helper.make_node("ConstantOfShape", ["x"], ["much"]),
        helper.make_node("Cos", ["much"], ["as_much"]),
        helper.make_node("ReduceSum", ["as_much"], ["y"], keepdims=1),
    ]
    takes = [helper.make_tensor_value_info("x", TensorProto.INT64, [1])]
    gives = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "hungry", takes, gives)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    serving = dataclasses.replace(SERVING, unsafe_division=True)
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf, serving=serving)
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": dividing()}, model="dividing")
    house.publish({"model.onnx": looping()}, model="loop")
    house.publish({"model.onnx": hungry()}, model="hungry")
    yield house
    house.close()


@pytest.fixture(scope="module")
def hall(house: House, leaf: LeafFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    hall = Hall(house, leaf, tmp_path_factory.mktemp("hall"), **SHORT)
    yield hall
    hall.close()


def number(model: str, count: int) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name=model, raw_input_contents=[np.array([count], "<i8").tobytes()])
    request.inputs.add(name="x", datatype="INT64", shape=[1])
    return request


def quotient(of: int, by: int) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name="dividing")
    for name, value in (("a", of), ("b", by)):
        request.inputs.add(name=name, datatype="INT64", shape=[1])
        request.raw_input_contents.append(np.array([value], "<i8").tobytes())
    return request


def pictures(digits: Digits) -> wire.ModelInferRequest:
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[digits.images.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=digits.images.shape)
    return request


def labels(answer: bytes) -> list[int]:
    response = wire.ModelInferResponse.FromString(answer)
    place = [output.name for output in response.outputs].index("label")
    return np.frombuffer(response.raw_output_contents[place], dtype="<i8").tolist()


class Callers:
    """Callers on connections of their own, who ask all the time until told to end."""

    def __init__(self, hall: Hall, digits: Digits, count: int = 4) -> None:
        self._hall, self._digits = hall, digits
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._asking = [self._pool.submit(self._ask) for _ in range(count)]

    def _ask(self) -> list[list[int] | str]:
        said: list[list[int] | str] = []
        with self._hall.channel() as channel:
            while not self._ended.is_set():
                try:
                    said.append(labels(self._hall.ask(pictures(self._digits), channel=channel)))
                except grpc.RpcError as error:
                    said.append(error.code().name)
        return said

    def end(self) -> list[list[int] | str]:
        """What all of them were answered."""
        self._ended.set()
        said = [answer for asking in self._asking for answer in asking.result(PATIENCE)]
        self._pool.shutdown()
        return said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_d21_a_worker_that_is_killed_under_load_is_replaced_and_every_call_is_answered_rightly(
    hall: Hall, digits: Digits, number: int
) -> None:
    callers, before = Callers(hall, digits), hall.pids()
    os.kill(min(before), number)
    hall.replaced(before)
    said = callers.end()
    assert len(said) > 10
    assert all(answer == digits.labels.tolist() for answer in said)
    assert hall.pids() & before == {max(before)}


def test_d21_an_input_that_never_ends_ends_its_worker_twice_and_is_then_refused(hall: Hall, digits: Digits) -> None:
    for _ in range(2):
        before = hall.pids()
        callers = Callers(hall, digits, 2)
        with hall.channel(again=False) as channel, pytest.raises(grpc.RpcError) as caught:
            hall.ask(number("loop", ENDLESS), channel=channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        hall.replaced(before)
        assert all(answer == digits.labels.tolist() for answer in callers.end())
    with hall.channel(again=False) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            hall.ask(number("loop", ENDLESS), channel=channel)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert hall.ask(number("loop", 3), channel=channel)
    assert hall.serving() == 2


def test_d21_a_model_that_ends_two_workers_rests_whatever_it_is_asked_and_the_others_are_served(
    hall: Hall, digits: Digits
) -> None:
    with hall.channel() as channel:
        assert hall.ask(quotient(7, -1), channel=channel)
    for beside in (1, 2):  # another input each time: what is known of one does not help
        before = hall.pids()
        callers = Callers(hall, digits, 2)
        bad = quotient(LEAST, -1)
        bad.inputs[0].shape[0] = bad.inputs[1].shape[0] = 1 + beside
        bad.raw_input_contents[0] += bytes(8 * beside)
        bad.raw_input_contents[1] += np.ones(beside, "<i8").tobytes()
        with hall.channel(again=False) as channel, pytest.raises(grpc.RpcError) as caught:
            hall.ask(bad, channel=channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        hall.replaced(before)
        assert all(answer == digits.labels.tolist() for answer in callers.end())  # their model is under no suspicion
    before = hall.pids()
    with hall.channel(again=False) as channel:
        for request in (quotient(LEAST, -1), quotient(7, -1)):
            with pytest.raises(grpc.RpcError) as caught:
                hall.ask(request, channel=channel)
            error = from_rpc_error(caught.value)
            assert error.code is Code.FAILED_PRECONDITION
            # A worker that was started since has not loaded it, and says that.
            assert error.reason in {Reason.MODEL_REFUSED, Reason.MODEL_NOT_READY}
        assert labels(hall.ask(pictures(digits), channel=channel)) == digits.labels.tolist()
        assert hall.ask(number("loop", 3), channel=channel)
    assert hall.pids() == before
    assert hall.serving() == 2
    assert any("Floating point exception" in said for said in hall.heard)


def test_that_divisions_are_taken_which_may_end_a_process_is_said_at_the_start_and_once(hall: Hall) -> None:
    assert sum("CASEMATE_INFERENCE_UNSAFE_DIVISION is set" in text for text in hall.heard) == 1


def test_one_page_shows_every_worker_and_each_has_an_audit_file_of_its_own(hall: Hall) -> None:
    page = hall.page()
    assert all(f'worker="{index}"' in page for index in (0, 1))
    assert "# TYPE casemate_workers_replaced_total counter" in page
    assert page.count("# TYPE nv_inference_count counter") == 1
    files = sorted(file.name for file in hall._directory.glob("audit*.jsonl"))
    assert files == ["audit.0.jsonl", "audit.1.jsonl"]


def test_values_that_ask_for_more_than_the_memory_of_all_models_are_refused_and_nothing_dies(
    hall: Hall, digits: Digits
) -> None:
    before = hall.pids()
    with hall.channel(again=False) as channel:
        for size in (5_000_000, 8_000_000, HUNDRED_MILLION, 10**12):  # each worker has 128 MiB, and a run takes twice
            if size < HUNDRED_MILLION:
                assert hall.ask(number("hungry", size), channel=channel)
                continue
            with pytest.raises(grpc.RpcError) as caught:
                hall.ask(number("hungry", size), channel=channel)
            error = from_rpc_error(caught.value)
            assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.REQUEST_TOO_LARGE)
        assert hall.ask(number("hungry", 10_000_000), channel=channel)  # what was kept for the others was given back
        assert labels(hall.ask(pictures(digits), channel=channel)) == digits.labels.tolist()
    assert hall.pids() == before


def test_the_service_itself_cuts_a_stream_that_idles_and_not_one_that_works(hall: Hall, digits: Digits) -> None:
    ended = threading.Event()
    request = pictures(digits).SerializeToString()

    def one_request() -> Iterator[bytes]:
        yield request
        ended.wait(PATIENCE)

    def requests_until_the_other_is_cut() -> Iterator[bytes]:
        while not ended.wait(0.1):
            yield request

    def ask(requests: Iterator[bytes], channel: grpc.Channel) -> Iterator[bytes]:
        infer = channel.stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
        return infer(requests, metadata=hall.house.metadata(hall.house.caller), timeout=PATIENCE)

    with hall.channel() as channel, ThreadPoolExecutor(1) as pool:
        idle = ask(one_request(), channel)
        assert next(idle)
        busy = pool.submit(list, ask(requests_until_the_other_is_cut(), channel))
        with pytest.raises(grpc.RpcError) as caught:
            next(idle)
        ended.set()
        assert from_rpc_error(caught.value).reason is Reason.STREAM_IDLE
        assert len(busy.result(PATIENCE)) >= 5


def test_every_quota_is_divided_among_the_workers() -> None:
    whole, part = Shares(), share_out(Shares(), 4)
    assert (part.caller_concurrency, part.tenant_concurrency) == (16, 64)
    assert part.calls_per_second * 4 == whole.calls_per_second
    assert part.tenant_calls_per_second * 4 == whole.tenant_calls_per_second
    assert part.resource_burst * 4 == whole.resource_burst
    assert share_out(whole, 1) == whole
    assert share_out(Shares(caller_concurrency=1), 4).caller_concurrency == 1


def test_a_worker_gives_its_part_of_every_quota_and_a_lone_process_the_whole(house: House) -> None:
    board = SupervisorBoard(4)
    for seat in (None, Seat(index=0, count=4, board=WorkerBoard(board.descriptor, 0), descriptor=-1)):
        service = house.serve(seat=seat)
        quota = service._interceptor._gate._quota
        assert quota._shares == (Shares() if seat is None else share_out(Shares(), 4))
    board.close()


def test_told_to_end_all_workers_answer_what_they_have_and_end(
    house: House, leaf: LeafFactory, tmp_path: Path, digits: Digits
) -> None:
    hall = Hall(house, leaf, tmp_path)
    with hall.channel() as channel:
        assert labels(hall.ask(pictures(digits), channel=channel)) == digits.labels.tolist()
        workers = hall.pids()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(hall.ask, number("loop", 500_000), channel=channel)
            while not hall.runs():
                assert not running.done()
            hall.process.send_signal(signal.SIGTERM)
            assert running.result(PATIENCE)
    assert hall.end() == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert not any("Traceback" in text or "UNSAFE" in text for text in hall.heard)
    for file in tmp_path.glob("audit.*.jsonl"):
        with file.open("rb") as lines:
            verify_chain(lines)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_told_to_end_with_a_run_that_does_not_end_it_ends_by_itself(
    house: House, leaf: LeafFactory, tmp_path: Path, workers: int
) -> None:
    hall = Hall(house, leaf, tmp_path, workers=workers, UNSAFE_DIVISION="true")
    with hall.channel(again=False) as channel, ThreadPoolExecutor(1) as pool:
        hung = pool.submit(hall.ask, number("loop", ENDLESS), channel=channel)
        while not hall.runs():
            assert not hung.done()
        hall.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            hung.result(PATIENCE)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        # Python may end by SIGABRT where a thread is still in a run: all that was to be written is written by then.
        assert hall.process.wait(PATIENCE) in (0, -signal.SIGABRT)
    hall.close()
    for file in tmp_path.glob("audit*.jsonl"):  # no part of it was killed
        with file.open("rb") as lines:
            verify_chain(lines)


@pytest.mark.long
def test_a_worker_that_is_stopped_is_replaced_and_no_call_is_answered_wrongly(
    house: House, leaf: LeafFactory, tmp_path: Path, digits: Digits
) -> None:
    hall = Hall(house, leaf, tmp_path, WORKER_SILENCE="2s")
    try:
        callers, before = Callers(hall, digits), hall.pids()
        os.kill(min(before), signal.SIGSTOP)
        hall.replaced(before)
        said = callers.end()
        # Who was connected to it waits for two seconds, and may find its successor slow to come; nothing wrong is said.
        assert digits.labels.tolist() in said
        assert all(answer in (digits.labels.tolist(), "UNAVAILABLE") for answer in said)
        assert "hangs" in hall.page()
    finally:
        hall.close()


@pytest.mark.long
def test_a_worker_that_outgrows_its_memory_answers_what_it_has_and_is_replaced(
    house: House, leaf: LeafFactory, tmp_path: Path, digits: Digits
) -> None:
    hall = Hall(house, leaf, tmp_path, WORKER_MEMORY_MIB="500")
    try:
        callers, before = Callers(hall, digits), hall.pids()
        with hall.channel() as channel:
            assert hall.ask(number("hungry", HUNDRED_MILLION), channel=channel)
        hall.replaced(before)
        assert all(answer == digits.labels.tolist() for answer in callers.end())
        assert 'why="outgrew its memory"' in hall.page()
    finally:
        hall.close()
