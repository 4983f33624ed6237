"""What runs on the thread that serves all calls: only what is known to be short, and stays so."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from services.inference.instance import OnnxInstance
from services.inference.latency import AT_ONCE_NS, Lightness
from services.inference.preparation import Preparation
from services.inference.statistics import Statistics
from services.inference.steadiness import is_steady
from tests.services.inference import nets
from tests.services.inference.conftest import Digits
from tests.services.inference.house import House

ONE_ROW = frozenset([("x", (1, 64))])


def batcher(model: bytes, **files: bytes) -> Any:
    return Preparation(instances=1)(
        OnnxInstance(model), {name.replace("_", "."): data for name, data in files.items()}
    ).batcher


def timed(batcher: Any, rows: int = 1) -> Any:
    """The batcher, after a run of so many rows that took no time."""
    batcher._runner.lightness.learn(1, {"x": np.zeros((rows, 64), np.float32)})
    return batcher


@pytest.mark.parametrize("model", [nets.dense(), nets.mixing(), nets.summing()])
def test_a_model_whose_work_follows_from_shapes_is_steady(model: bytes) -> None:
    assert OnnxInstance(model).steady


def test_a_model_that_turns_as_often_as_its_caller_says_is_not_steady_and_never_served_at_once() -> None:
    looping = OnnxInstance(nets.looping())
    assert not looping.steady
    loops = Preparation(instances=1)(looping, {}).batcher
    name = looping.inputs[0].name
    shape = np.zeros((1,), np.int64).shape
    loops._runner.lightness.learn(1, {name: np.zeros(shape, np.int64)})
    assert not loops.at_once(frozenset([(name, shape)]))


def test_an_operator_that_nobody_listed_is_not_steady() -> None:
    inputs = OnnxInstance(nets.dense()).inputs
    assert is_steady({b"Gemm", b"Softmax"}, inputs)
    assert not is_steady({b"Gemm", b"Expand"}, inputs)


def test_only_shapes_that_were_timed_as_short_are_served_at_once() -> None:
    fresh = batcher(nets.dense())
    assert not fresh.at_once(ONE_ROW)
    timed(fresh)
    assert fresh.at_once(ONE_ROW)
    assert not fresh.at_once(frozenset([("x", (2, 64))]))


@pytest.mark.parametrize("slow", [[4 * AT_ONCE_NS], [2 * AT_ONCE_NS] * 4])
def test_a_shape_that_took_far_too_long_once_or_too_long_often_is_given_a_thread(slow: list[int]) -> None:
    lightness, array = Lightness(), {"x": np.zeros((1, 64), np.float32)}
    lightness.learn(AT_ONCE_NS - 1, array)
    assert lightness.knows_short(ONE_ROW)
    for cpu_ns in slow:
        lightness.learn(cpu_ns, array)
    assert not lightness.knows_short(ONE_ROW)


def test_a_quick_shape_that_was_interrupted_once_stays_where_it_was() -> None:
    lightness, array = Lightness(), {"x": np.zeros((1, 64), np.float32)}
    lightness.learn(AT_ONCE_NS // 10, array)
    lightness.learn(2 * AT_ONCE_NS, array)
    assert lightness.knows_short(ONE_ROW)


def test_a_caller_of_many_shapes_does_not_fill_memory_with_them() -> None:
    lightness = Lightness()
    for rows in range(1, 200):
        lightness.learn(1, {"x": np.zeros((rows, 1), np.float32)})
    assert sum(lightness.knows_short(frozenset([("x", (rows, 1))])) for rows in range(1, 200)) == 64


@pytest.mark.parametrize("members", [{"instances": 1}, {"queue": 3}, {"batching": {"max_rows": 8}}])
def test_a_model_with_limits_or_a_queue_of_its_own_is_never_served_past_them(members: dict[str, object]) -> None:
    warm = {"warm_up": [nets.sample()]} if "batching" in members else {}
    assert timed(batcher(nets.dense(), serving_json=nets.serving())).at_once(ONE_ROW)
    assert not timed(batcher(nets.dense(), serving_json=nets.serving(**members, **warm))).at_once(ONE_ROW)


def test_an_answer_at_once_is_bit_for_bit_that_of_the_queue_and_counted_alike() -> None:
    ran, statistics = batcher(nets.dense()), Statistics()
    inputs = {"x": np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)}
    here = ran.run_here(inputs, rows=1, statistics=statistics)
    assert here.outputs["y"].tobytes() == OnnxInstance(nets.dense()).run(inputs)["y"].tobytes()
    assert here.queue_ns == 0 < here.infer_ns
    assert statistics.current.executions == 1


def test_over_the_wire_a_short_model_comes_to_run_on_the_serving_thread_with_the_same_answers(
    house: House, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.publish({"model.onnx": digits.onnx})
    predictions, threads = house.service.predictions, []
    answer = predictions._answer

    def noting(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return answer(*arguments)

    monkeypatch.setattr(predictions, "_answer", noting)
    assert house.predict(digits.images) == digits.labels.tolist()
    assert threads[-1].startswith("call")
    loaded = house.service.catalogue.find("acme", "digits", "")
    name = loaded.instance.inputs[0].name
    loaded.batcher._runner.lightness.learn(1, {name: digits.images})
    assert house.predict(digits.images) == digits.labels.tolist()
    assert threads[-1] == "lane"
