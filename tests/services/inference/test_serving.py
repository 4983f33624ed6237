"""`serving.json`: what it may say, and what a model must prove before it is batched."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from casemate.errors import InvalidRequest, Reason
from services.inference.batch_jobs import Terms
from services.inference.instance import OnnxInstance
from services.inference.non_finite import require_finite
from services.inference.preparation import Preparation
from services.inference.serving import Serving, read_serving
from services.inference.statistics import Statistics
from tests.services.inference.nets import dense, looping, mixing, poisonable, sample, serving, summing

BATCHING = {"max_rows": 8}


def test_a_version_without_the_file_is_not_batched_and_takes_any_number() -> None:
    assert read_serving({}) == Serving(batching=None, priority_levels=1, refuse_non_finite=False)


def test_every_member_is_read() -> None:
    read = read_serving(
        {
            "serving.json": serving(
                batching={"max_rows": 8, "preferred_rows": [4, 8], "window_us": 500, "share_between_tenants": True},
                queue=9,
                instances=2,
                priority_levels=3,
                non_finite="refuse",
                warm_up=[sample()],
            )
        }
    )
    assert read.batching is not None
    assert (read.batching.max_rows, read.batching.preferred_rows, read.batching.window_us) == (8, (4, 8), 500)
    assert (read.batching.share_between_tenants, read.queue, read.instances) == (True, 9, 2)
    assert (read.priority_levels, read.refuse_non_finite, len(read.warm_up)) == (3, True, 1)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"batch": {}}, "batch"),
        ({"batching": {"max_rows": 8, "delay": 3}}, "batching.delay"),
        ({"batching": {"max_rows": 1}}, "batching.max_rows"),
        ({"batching": {"max_rows": 8.0}}, "batching.max_rows"),
        ({"batching": {"max_rows": True}}, "batching.max_rows"),
        ({"batching": {"max_rows": 8, "preferred_rows": [8, 4]}}, "batching.preferred_rows"),
        ({"batching": {"max_rows": 8, "preferred_rows": [16]}}, "batching.preferred_rows"),
        ({"batching": {"max_rows": 8, "window_us": -1}}, "batching.window_us"),
        ({"batching": {"max_rows": 8, "share_between_tenants": "no"}}, "batching.share_between_tenants"),
        ({"batching": [], "warm_up": []}, "batching"),
        ({"queue": 0}, "queue"),
        ({"instances": 65}, "instances"),
        ({"priority_levels": 17}, "priority_levels"),
        ({"non_finite": "ignore"}, "non_finite"),
        ({"warm_up": {}}, "warm_up"),
        ({"warm_up": [{}]}, "warm_up[0].inputs"),
        ({"warm_up": [{"inputs": {"x": {"shape": [2], "values": [1]}}}]}, "warm_up[0].inputs.x.values"),
        ({"warm_up": [{"inputs": {}, "outputs": {}}]}, "warm_up[0].outputs"),
    ],
)
def test_a_member_that_is_unknown_or_of_the_wrong_kind_refuses_the_version(
    members: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_serving({"serving.json": serving(**members)})
    assert caught.value.reason is Reason.MODEL_INVALID
    assert [violation.field for violation in caught.value.violations] == [f"serving.json.{field}"]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"queue":1,"queue":2}', b"{", b'{"queue":NaN}', b"\xff"])
def test_a_file_that_is_no_unambiguous_json_refuses_the_version(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_serving({"serving.json": data})
    assert caught.value.reason is Reason.MODEL_INVALID


def test_batching_needs_a_sample_to_prove_itself() -> None:
    with pytest.raises(InvalidRequest):
        read_serving({"serving.json": serving(batching=BATCHING)})
    assert read_serving({"serving.json": serving(batching=BATCHING, warm_up=[sample()])}).batching is not None


def prepare(model: bytes, **members: object):
    instance = OnnxInstance(model)
    return instance, Preparation(instances=1)(instance, {"serving.json": serving(**members)})


@pytest.mark.parametrize("model", [mixing(), summing()])
def test_a_model_whose_rows_colour_each_other_is_not_batched(model: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(model, batching=BATCHING, warm_up=[sample()])
    assert [violation.field for violation in caught.value.violations] == ["serving.json.batching"]
    prepare(model, warm_up=[sample()])  # its twin runs each request alone


def test_d7_a_model_whose_rows_nan_passes_between_is_batched_only_where_nan_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(poisonable(), batching=BATCHING, warm_up=[sample()])
    assert [violation.field for violation in caught.value.violations] == ["serving.json.batching"]
    prepare(poisonable(), batching=BATCHING, warm_up=[sample()], non_finite="refuse")


def test_a_sample_that_does_not_fit_the_model_refuses_the_version() -> None:
    for wrong in (sample(width=63), sample(name="z")):
        with pytest.raises(InvalidRequest):
            prepare(dense(), warm_up=[wrong])
    prepare(dense(), warm_up=[sample()])


@pytest.mark.parametrize("count", [3, 2**60])
def test_a_sample_whose_run_does_not_end_is_ended_and_refuses_the_version(count: int) -> None:
    files = {"serving.json": serving(warm_up=[{"inputs": {"x": {"shape": [1], "values": [count]}}}])}
    ready = Preparation(instances=1, within=timedelta(seconds=0.5))
    if count == 3:
        assert ready(OnnxInstance(looping()), files)
        return
    with pytest.raises(InvalidRequest) as caught:
        ready(OnnxInstance(looping()), files)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_an_answer_is_the_same_to_the_last_bit_whoever_shares_the_run() -> None:
    instance, prepared = prepare(dense(), batching=BATCHING, warm_up=[sample()])
    rows = np.random.default_rng(5).standard_normal((8, 64)).astype(np.float32)
    together = instance.run({"x": rows})["y"]
    for index in range(8):
        alone = prepared.batcher.run(
            {"x": rows[index : index + 1]}, rows=1, terms=Terms("acme", "a", 1e12), statistics=Statistics()
        ).outputs["y"]
        assert alone.tobytes() == together[index : index + 1].tobytes()


def test_nan_and_infinities_are_refused_where_the_model_says_so_and_denormals_are_numbers() -> None:
    specs = OnnxInstance(dense()).inputs
    row = np.zeros((1, 64), np.float32)
    row[0, 3] = 1e-42
    require_finite({"x": row}, specs)
    for bad in (np.nan, np.inf, -np.inf):
        row[0, 3] = bad
        with pytest.raises(InvalidRequest) as caught:
            require_finite({"x": row}, specs)
        assert [violation.field for violation in caught.value.violations] == ["inputs.x"]
