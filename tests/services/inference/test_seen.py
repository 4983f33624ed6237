"""What operators see: Triton's metrics, ModelStatistics and traces."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from casemate.transport.exposition import read_page, write_page
from services.inference.tracing import Sampler, begin
from tests.services.inference.conftest import Digits
from tests.services.inference.house import SERVING, TENANT, House
from tests.services.inference.test_service import connect, image_input
from tests.support.authority import LeafFactory

LABELS = {"tenant": TENANT, "model": "digits", "version": "1"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def served(house: House, digits: Digits) -> House:
    house.publish({"model.onnx": digits.onnx})
    return house


def test_tritons_metrics_count_what_model_statistics_counts(served: House, digits: Digits) -> None:
    with connect(served, served.caller) as client:
        client.infer("digits", image_input(digits))
        with pytest.raises(InferenceServerException):
            client.infer("digits", [])
        statistics = client.get_inference_statistics("digits").model_stats[0]
    rows, ns = len(digits.images), statistics.inference_stats
    value = served.metrics.registry.get_sample_value
    assert (statistics.inference_count, statistics.execution_count, ns.fail.count) == (rows, 1, 1)
    assert value("nv_inference_request_success", LABELS) == ns.success.count == 1
    assert value("nv_inference_request_failure", {**LABELS, "reason": "OTHER"}) == 1
    assert value("nv_inference_count", LABELS) == rows
    assert value("nv_inference_exec_count", LABELS) == 1
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert value(f"nv_inference_{name}_duration_us", LABELS) == getattr(ns, name).ns // 1000
    assert value("nv_inference_request_duration_us", LABELS) == ns.success.ns // 1000
    assert value("nv_inference_pending_request_count", LABELS) == 0
    assert value("casemate_inference_runs_total", {**LABELS, "rows": str(rows)}) == 1


def test_durations_are_nanoseconds_that_add_up(served: House, digits: Digits) -> None:
    with connect(served, served.caller) as client:
        for _ in range(3):
            client.infer("digits", image_input(digits))
        [statistics] = client.get_inference_statistics("digits").model_stats
    stats = statistics.inference_stats
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [part.count for part in (stats.success, *parts)] == [3] * 5
    assert 0 < sum(part.ns for part in parts) <= stats.success.ns
    [batch] = statistics.batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (len(digits.images), 3)
    assert batch.compute_infer.ns == stats.compute_infer.ns


COUNTERS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
}
"""Triton's own names and kinds (docs/user_guide/metrics.md of its server)."""

OURS = {
    "casemate_calls_total": "counter",
    "casemate_denied_total": "counter",
    "casemate_token_cache_total": "counter",
    "casemate_inference_shed_total": "counter",
    "casemate_inference_runs_total": "counter",
    "casemate_inference_runs_under_way": "gauge",
    "casemate_trust_staleness_seconds": "gauge",
}
"""Of the gate, the queue and the batches."""


def kinds(page: str) -> dict[str, str]:
    """By the format's own rules: one TYPE line a family, before its samples, which have its name."""
    found: dict[str, str] = {}
    family = ""
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family not in found
            found[family] = kind
        elif not line.startswith("#"):
            name = re.match("[a-z_A-Z0-9:]+", line)[0]
            assert name in (family, *(family + end for end in ("_bucket", "_sum", "_count")))
    return found


def test_each_family_stands_once_under_its_own_name_and_kind_with_several_models(served: House, digits: Digits) -> None:
    served.publish({"model.onnx": digits.onnx}, model="other")
    with connect(served, served.caller) as client:
        client.infer("digits", image_input(digits))
    page = served.metrics.exposition().decode()
    kind_of = kinds(page)
    tritons = {name: kind for name, kind in kind_of.items() if name.startswith("nv_")}
    assert tritons == dict.fromkeys(COUNTERS, "counter") | {"nv_inference_pending_request_count": "gauge"}
    assert {name: kind_of.get(name) for name in OURS} == OURS
    assert len(re.findall(r"^nv_inference_count\{", page, re.MULTILINE)) == 2
    parsed = {family.name: family for family in text_string_to_metric_families(page)}
    for name in COUNTERS:
        assert (parsed[name].type, bool(parsed[name].documentation)) == ("counter", True)
    reasons = {sample.labels["reason"] for sample in parsed["nv_inference_request_failure"].samples}
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}


def test_a_page_that_was_read_is_written_again_as_it_was(served: House) -> None:
    page = served.metrics.exposition()
    again = write_page(read_page(page.decode()))
    assert kinds(again.decode()) == kinds(page.decode())
    assert sorted(again.splitlines()) == sorted(page.splitlines())


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        ([PARENT], True),
        ([PARENT.upper()], False),
        ([PARENT, PARENT], False),
        (["ff" + PARENT[2:]], False),
        (["00-" + "0" * 32 + PARENT[35:]], False),
        ([PARENT + "\n"], False),
        ([], False),
    ],
)
def test_a_trace_joins_the_callers_when_that_is_well_formed(given: list[str], *, joined: bool) -> None:
    trace = begin([("traceparent", value) for value in given])
    assert (trace.trace_id == PARENT[3:35], trace.parent_id == PARENT[36:52]) == (joined, joined)
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)


def test_how_many_are_traced_is_ours_to_say() -> None:
    none, third = Sampler(one_in=0), Sampler(one_in=3)
    assert [none.choose() for _ in range(6)] == [False] * 6
    assert [third.choose() for _ in range(6)] == [False, False, True] * 2


@pytest.mark.parametrize(("one_in", "written"), [(0, 0), (1, 1)])
def test_a_callers_flag_orders_no_trace(
    *, one_in: int, written: int, tmp_path: Path, leaf: LeafFactory, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(directory=tmp_path, leaf=leaf, serving=replace(SERVING, trace_one_in=one_in))
    house.publish({"model.onnx": digits.onnx})
    caplog.set_level(logging.INFO, logger="services.inference.tracing")
    with connect(house, house.caller) as client:
        client.infer("digits", image_input(digits), headers={"traceparent": PARENT})
    house.close()
    spans = [line for line in caplog.messages if line.startswith(f"span trace_id={PARENT[3:35]} ")]
    assert len(spans) == written
