"""What waits for a model, over the wire: its place, its deadline, its caller who leaves (rows D10, D16 to D20, D22).

The model is on a back end that answers when the test says, one run at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from casemate.errors import CasemateError, Code, Exhausted, Reason
from casemate.gate.core.records import Grant
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.status import from_rpc_error
from services.inference.servicers import OPEN_INFERENCE
from services.inference.streams import Streams
from tests.services.inference.counter import SAMPLE, SETTINGS, Counter, answer, refusal, until
from tests.services.inference.house import PATIENCE, TENANT, Caller, House
from tests.services.inference.identity import identity
from tests.support.authority import LeafFactory


def test_d10_a_request_that_fails_in_a_shared_run_fails_alone(make: Callable[..., Counter]) -> None:
    counter = make(batching={"max_rows": 8}, warm_up=[SAMPLE])
    first = counter.running(1)
    bad = counter.waiting(-5, caller=counter.house.trainer)
    good = [counter.waiting(2), counter.waiting(3, 4)]
    counter.sums.poison = -5.0
    counter.go()
    assert refusal(bad).code is Code.INVALID_ARGUMENT
    assert [answer(first), *(answer(each) for each in good)] == [[3.0], [6.0], [9.0, 12.0]]
    assert sorted(counter.ran()[1]) == [-5.0, 2.0, 3.0, 4.0]  # they did share one


def test_d16_a_full_queue_refuses_with_a_time_to_come_again_and_a_place_in_it_does_not(
    make: Callable[..., Counter],
) -> None:
    counter = make(queue=1)
    first, second = counter.running(1), counter.waiting(2)
    error = refusal(counter.ask(3))
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert error.retry_after > timedelta(0)
    assert counter.counts.shed == {"queue": 1}
    counter.go()
    assert (answer(first), answer(second), answer(counter.ask(3))) == ([3.0], [6.0], [9.0])
    assert counter.ran() == [[1.0], [2.0], [3.0]]


def test_d17_a_deadline_that_passes_in_the_queue_ends_the_call_and_its_work_never_starts(
    make: Callable[..., Counter],
) -> None:
    counter = make()
    first, late = counter.running(1), counter.waiting(2, within=0.3)
    assert refusal(late).code is Code.DEADLINE_EXCEEDED
    until(lambda: counter.batcher.waiting == 0)
    counter.go()
    assert (answer(first), answer(counter.ask(3, within=PATIENCE))) == ([3.0], [9.0])
    assert counter.ran() == [[1.0], [3.0]]
    assert counter.counts.shed in ({"deadline": 1}, {"cancelled": 1})  # by our clock or by its word, whichever is first


def test_d18_a_call_that_is_cancelled_in_the_queue_gives_its_place_back(
    make: Callable[..., Counter], caplog: pytest.LogCaptureFixture
) -> None:
    counter = make(queue=1)
    first, left = counter.running(1), counter.waiting(2)
    left.cancel()
    until(lambda: counter.batcher.waiting == 0)
    next_one = counter.waiting(3)
    counter.go()
    assert (answer(first), answer(next_one)) == ([3.0], [9.0])
    assert counter.ran() == [[1.0], [3.0]]
    assert counter.counts.shed == {"cancelled": 1}
    until(lambda: counter.counts.failures.get("CANCELED") == 1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_d18_a_call_that_is_cancelled_while_it_runs_leaves_the_model_free_for_the_next(
    make: Callable[..., Counter],
) -> None:
    counter = make()
    counter.running(1).cancel()
    next_one = counter.waiting(2)
    counter.go()
    assert answer(next_one) == [6.0]
    until(lambda: counter.batcher.running == 0)


def test_d19_a_call_without_a_deadline_gets_the_servers(make: Callable[..., Counter]) -> None:
    counter = make(deadline=timedelta(seconds=1))
    first, endless = counter.running(1, within=None), counter.waiting(2, within=None)
    assert refusal(endless).code is Code.DEADLINE_EXCEEDED
    counter.go()
    assert answer(first) == [3.0]
    assert counter.ran() == [[1.0]]
    assert counter.counts.shed == {"deadline": 1}
    assert answer(counter.ask(3, within=None)) == [9.0]


def test_a_timeout_in_the_request_is_kept_as_a_deadline_is(make: Callable[..., Counter]) -> None:
    counter = make()
    first, late = counter.running(1), counter.waiting(2, within=None, timeout=300_000)
    assert refusal(late).code is Code.DEADLINE_EXCEEDED
    in_time = counter.waiting(3, within=None, timeout=int(PATIENCE * 1e6))
    counter.go()
    assert (answer(first), answer(in_time)) == ([3.0], [9.0])
    assert counter.ran() == [[1.0], [3.0]]


def test_a_priority_in_the_request_goes_first_where_the_model_has_levels(make: Callable[..., Counter]) -> None:
    counter = make(priority_levels=2)
    asked = [counter.running(1), counter.waiting(2, priority=2), counter.waiting(3, priority=1)]
    counter.go()
    assert [answer(each) for each in asked] == [[3.0], [6.0], [9.0]]
    assert counter.ran() == [[1.0], [3.0], [2.0]]


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_a_priority_or_timeout_that_is_no_whole_number_is_refused(make: Callable[..., Counter], name: str) -> None:
    counter = make()
    counter.go()
    request = wire.ModelInferRequest(model_name="sums", raw_input_contents=[bytes(12)])
    request.inputs.add(name="rows", datatype="FP32", shape=(1, 3))
    request.parameters[name].string_param = "soon"
    with pytest.raises(CasemateError) as caught:
        counter.house.call("ModelInfer", request)
    assert caught.value.code is Code.INVALID_ARGUMENT
    request.parameters[name].uint64_param = 30_000_000
    assert counter.house.call("ModelInfer", request).model_name == "sums"


def test_d22_a_caller_who_floods_a_model_leaves_every_other_caller_his_turn(make: Callable[..., Counter]) -> None:
    counter = make()
    asked = [counter.running(1), *(counter.waiting(row) for row in (2, 3, 4, 5, 6))]
    asked.append(counter.waiting(100, caller=counter.house.trainer))
    counter.go()
    assert [answer(each) for each in asked] == [[3.0], [6.0], [9.0], [12.0], [15.0], [18.0], [300.0]]
    assert counter.ran().index([100.0]) <= 2


@pytest.fixture
def echoing(tmp_path: Path, leaf: LeafFactory) -> Iterator[House]:
    """A house that gives back what it gets, and whose streams may be idle for a quarter of a second."""
    settings = dataclasses.replace(SETTINGS, stream_idle=timedelta(seconds=0.25))
    house = House(directory=tmp_path, leaf=leaf, serving=settings)
    house.publish({"model.onnx": identity("FP32", shape=(None, 64))}, model="echo")
    yield house
    house.close()


def rows_to_echo(rows: int) -> bytes:
    request = wire.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(256 * rows)])
    request.inputs.add(name="FP32_in", datatype="FP32", shape=(rows, 64))
    return request.SerializeToString()


def test_d20_a_stream_whose_peer_does_not_read_is_answered_no_further_and_cut(echoing: House) -> None:
    streams: Streams = echoing.service.streams
    stream = echoing.channel(echoing.caller).stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
    large = rows_to_echo(4096)  # a mebibyte
    asked = stream(iter([large] * 64), metadata=echoing.metadata(echoing.caller), timeout=PATIENCE)
    turns, cut = threading.Event(), 0
    while not cut or streams.running:  # told first, which a half-sent reply does not allow; then cancelled
        cut += streams.cut_idle()
        assert not turns.wait(0.01)
    assert cut == 1
    executed = echoing.service.catalogue.find(TENANT, "echo", "").statistics.current.executions
    assert executed < 32  # the rest was neither run nor kept
    with pytest.raises(grpc.RpcError) as caught:
        list(asked)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_a_stream_whose_peer_sends_nothing_is_cut_and_told_why(echoing: House) -> None:
    silence, turns, cut = threading.Event(), threading.Event(), 0

    def nothing() -> Iterator[bytes]:
        assert silence.wait(PATIENCE)
        yield from ()

    stream = echoing.channel(echoing.caller).stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
    asked = stream(nothing(), metadata=echoing.metadata(echoing.caller), timeout=PATIENCE)
    while not cut:
        cut = echoing.service.streams.cut_idle()
        assert not turns.wait(0.01)
    with pytest.raises(grpc.RpcError) as caught:
        list(asked)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, Reason.STREAM_IDLE)
    assert "(request " in str(error)
    silence.set()


def test_d20_a_stream_whose_peer_reads_gets_all_of_it(echoing: House) -> None:
    stream = echoing.channel(echoing.caller).stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
    asked = stream(iter([rows_to_echo(4096)] * 8), metadata=echoing.metadata(echoing.caller), timeout=PATIENCE)
    assert [len(reply) > 1024 * 1024 for reply in asked] == [True] * 8
    assert echoing.service.catalogue.find(TENANT, "echo", "").statistics.current.executions == 8


def test_a_tenant_that_takes_every_stream_it_may_leaves_some_to_another(echoing: House) -> None:
    other = echoing.client("bob", tenant="globex")
    echoing.trust.change(Grant(id="g", tenant="globex", caller="t/globex/bob", verb="*", resource="model/*"))
    ended = threading.Event()

    def one_row() -> Iterator[bytes]:
        yield rows_to_echo(1)
        ended.wait(PATIENCE)

    def opened(who: Caller, channel: grpc.Channel) -> str:
        stream = channel.stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
        asked = stream(one_row(), metadata=echoing.metadata(who), timeout=PATIENCE)
        try:
            reply = wire.ModelStreamInferResponse.FromString(next(asked))
        except grpc.RpcError as error:
            return error.code().name
        kept.append(asked)
        return reply.error_message[:11] or "OK"

    kept: list[object] = []
    channel = echoing.channel(echoing.caller)
    taken = [opened(echoing.caller, channel) for _ in range(10)]  # of 12 places
    assert taken == ["OK"] * 9 + ["RESOURCE_EXHAUSTED"]
    assert opened(other, echoing.channel(other)) == "[NOT_FOUND]"  # it has a stream, and no such model
    ended.set()


def test_streams_leave_the_places_that_are_kept_to_another_tenant() -> None:
    streams = Streams(limit=2, kept=1, idle=timedelta(seconds=1))

    def entered(tenant: str) -> contextlib.AbstractContextManager[object]:
        return streams.enter(lambda _error: None, cancel=lambda: None, tenant=tenant)

    with entered("acme"):
        with pytest.raises(Exhausted), entered("acme"):
            pass
        with entered("globex"):
            pass
    with entered("acme"):
        pass
