"""Calls that wait for a model without a thread, over the wire: who answers them, and what is left of them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from casemate.errors import (
    CasemateError,
    Code,
)
from casemate.gate.adapters.lane import GatedCall
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.servicers import OPEN_INFERENCE
from tests.gate.attacks import scene as raw
from tests.services.inference.counter import SAMPLE, Counter, answer, refusal, until
from tests.services.inference.halting import PATIENCE


@pytest.mark.parametrize("rows", [1, 2000])
def test_calls_that_wait_for_a_model_hold_no_thread_and_one_answers_them_all(
    make: Callable[..., Counter], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    counter = make(batching={"max_rows": 4096 if rows > 1 else 64}, queue=64, warm_up=[SAMPLE])
    predictions, answerers = counter.house.service.predictions, set()
    conclusion = predictions._conclusion

    def noting(*arguments: Any) -> bytes:
        answerers.add(threading.current_thread().name)
        return conclusion(*arguments)

    monkeypatch.setattr(predictions, "_conclusion", noting)
    first = counter.running(1)
    waiting = [counter.waiting(*[row] * rows) for row in range(2, 22)]  # of 16 threads
    assert counter.house.call("ServerLive", wire.ServerLiveRequest()).live
    before = counter.counts
    counter.go()
    assert answer(first) == [3.0]
    assert [answer(each) for each in waiting] == [[3.0 * row] * rows for row in range(2, 22)]
    after = counter.counts
    assert after.success.count - before.success.count == 21
    assert len(answerers) == 1


def test_a_call_without_a_place_in_the_queue_is_refused_where_it_arrived(
    make: Callable[..., Counter], monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = make(queue=1)
    first, second = counter.running(1), counter.waiting(2)
    refused_by: list[str] = []
    fail = counter.house.service.predictions._terms

    def noting(*arguments: Any) -> Any:
        refused_by.append(threading.current_thread().name)
        return fail(*arguments)

    monkeypatch.setattr(counter.house.service.predictions, "_terms", noting)
    assert refusal(counter.ask(3)).code.value == "RESOURCE_EXHAUSTED"
    assert refused_by == ["lane"]
    counter.go()
    assert [answer(first), answer(second)] == [[3.0], [6.0]]


def test_a_peer_that_takes_no_bytes_holds_up_nobody_who_shares_its_run(make: Callable[..., Counter]) -> None:
    counter = make(batching={"max_rows": 8}, warm_up=[SAMPLE])
    who = counter.house.caller
    values = np.full((1, 3), 7, "<f4")
    request = wire.ModelInferRequest(model_name="sums", raw_input_contents=[values.tobytes()])
    request.inputs.add(name="rows", datatype="FP32", shape=values.shape)
    body = request.SerializeToString()
    first = counter.running(1)
    with raw.connected(
        counter.house.service.port, raw.tls(who.directory), name="inference.casemate.internal"
    ) as secure:
        client = raw.RawClient(secure)
        client.send(raw.frame(raw.SETTINGS, 0, 0, b"\0\4" + bytes(4)))  # no stream may send a byte
        head = raw.headers_of(f"/{OPEN_INFERENCE}/ModelInfer", *counter.house.metadata(who))
        client.send(
            raw.frame(raw.HEADERS, raw.END_HEADERS, 1, head),
            raw.frame(raw.DATA, raw.END_STREAM, 1, b"\0" + len(body).to_bytes(4) + body),
        )
        until(lambda: counter.batcher.waiting == 1)
        beside = counter.waiting(2)
        counter.go()
        assert [answer(first), answer(beside)] == [[3.0], [6.0]]
        assert counter.ran()[1] == [7.0, 2.0]  # they did share one
        assert answer(counter.ask(3)) == [9.0]
        client.send(raw.frame(8, 0, 1, (1 << 16).to_bytes(4)))  # WINDOW_UPDATE: now it does take them
        sent = b"".join(
            payload
            for kind, stream, payload in client.frames(until=raw.stream_ended(1))
            if (kind, stream) == (raw.DATA, 1)
        )
    response = wire.ModelInferResponse.FromString(sent[5:])
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [21.0]


def test_a_server_that_ends_answers_the_calls_that_wait_for_a_model(make: Callable[..., Counter]) -> None:
    counter = make(batching={"max_rows": 2}, warm_up=[SAMPLE])
    first = counter.running(1)
    waiting = [counter.waiting(row) for row in (2, 3, 4, 5)]
    ending = threading.Thread(target=counter.house.service._server.stop)
    ending.start()

    def refuses() -> bool:
        try:
            counter.house.call("ServerLive", wire.ServerLiveRequest())
        except CasemateError:
            return True
        return False

    until(refuses)
    counter.go()
    assert [answer(each) for each in (first, *waiting)] == [[3.0], [6.0], [9.0], [12.0], [15.0]]
    ending.join(PATIENCE)
    assert not ending.is_alive()


def test_nothing_is_left_of_a_call_however_it_ended(make: Callable[..., Counter]) -> None:
    """Core counts a call against its connection for as long as Python holds anything of it: a ring would, for long."""
    counter = make(batching={"max_rows": 8}, queue=6, warm_up=[SAMPLE])

    def calls() -> int:
        return sum(isinstance(each, GatedCall) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before, tries = calls(), 200
        first = counter.running(1)
        waiting = [counter.waiting(row) for row in (2, 3, 4)]
        late, left, bad = counter.waiting(5, within=None, timeout=300_000), counter.waiting(6), counter.waiting(-7)
        assert refusal(counter.ask(8)).code is Code.RESOURCE_EXHAUSTED
        left.cancel()
        assert refusal(late).code is Code.DEADLINE_EXCEEDED
        counter.sums.poison = -7.0
        counter.go()
        assert [answer(each) for each in (first, *waiting)] == [[3.0], [6.0], [9.0], [12.0]]
        assert refusal(bad).code is Code.INVALID_ARGUMENT
        turns = threading.Event()
        while calls() > before and not turns.wait(0.02):  # the last event of a call comes after its answer
            tries -= 1
            assert tries, "calls are kept"
    finally:
        gc.enable()
