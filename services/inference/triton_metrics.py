"""What Triton's dashboards ask Prometheus for, under Triton's names, read from the counts at each scrape.

Nothing is added to a call: the counts are those of ModelStatistics. What ends
in `_us` is microseconds; a version that was taken out and comes back counts from
zero again, as after a restart. Labels are those of loaded versions, so no client can
make new ones; `tenant` stands beside Triton's own two.

If this fails: dashboards are silent about models. ModelStatistics says the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from casemate.transport.exposition import PlainCounterFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.inference.catalogue import Catalogue
    from services.inference.loader import LoadedModel
    from services.inference.statistics import Counts
    from services.inference.watcher import Watcher

_LABELS = ("tenant", "model", "version")
_FAILURES = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_SHED = ("queue", "predicted", "deadline", "cancelled", "withdrawn")


class TritonMetrics:
    """A collector over the loaded versions, and those whose loads do not end."""

    def __init__(self, catalogue: Catalogue, watcher: Watcher) -> None:
        self._catalogue, self._watcher = catalogue, watcher

    def collect(self) -> Iterator[Metric]:
        """All families, as of now."""
        versions = [
            ((loaded.slot.tenant, loaded.slot.model, str(loaded.slot.number)), loaded, loaded.statistics.current)
            for key in self._catalogue.models()
            for loaded in self._catalogue.entry(key).versions.values()
        ]
        merged: dict[str, Metric] = {}
        for labels, loaded, counts in versions:
            for family in _Families(labels, loaded, counts).all():
                if family.name in merged:
                    merged[family.name].samples.extend(family.samples)
                else:
                    merged[family.name] = family
        yield from merged.values()
        yield GaugeMetricFamily(
            "casemate_inference_loads_overdue",
            "Versions whose loads take longer than one may hold up others.",
            value=len(self._watcher.overdue),
        )


class _Families:
    def __init__(self, labels: tuple[str, ...], loaded: LoadedModel, counts: Counts) -> None:
        self._labels, self._loaded, self._counts = labels, loaded, counts

    def all(self) -> Iterator[Metric]:
        counts = self._counts
        yield self._counter("nv_inference_request_success", "Successful requests.", counts.success.count)
        yield self._failures()
        yield self._counter("nv_inference_count", "Rows predicted.", counts.inferences)
        yield self._counter("nv_inference_exec_count", "Runs of the model.", counts.executions)
        for name, duration in (
            ("request", counts.success),
            ("queue", counts.queue),
            ("compute_input", counts.compute_input),
            ("compute_infer", counts.compute_infer),
            ("compute_output", counts.compute_output),
        ):
            yield self._counter(
                f"nv_inference_{name}_duration_us", f"Microseconds of successful requests: {name}.", duration.ns // 1000
            )
        yield self._gauge("nv_inference_pending_request_count", "Requests that wait for a run.", "waiting")
        yield self._gauge("casemate_inference_runs_under_way", "Runs under way.", "running")
        yield self._shed()
        yield self._runs()

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = PlainCounterFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _gauge(self, name: str, text: str, of: str) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, getattr(self._loaded.batcher, of))
        return family

    def _failures(self) -> Metric:
        family = PlainCounterFamily(
            "nv_inference_request_failure", "Failed requests, by reason.", labels=(*_LABELS, "reason")
        )
        for reason in _FAILURES:
            family.add_metric((*self._labels, reason), self._counts.failures.get(reason, 0))
        return family

    def _shed(self) -> Metric:
        family = CounterMetricFamily(
            "casemate_inference_shed", "Requests whose work was never begun, by reason.", labels=(*_LABELS, "reason")
        )
        for reason in _SHED:
            family.add_metric((*self._labels, reason), self._counts.shed.get(reason, 0))
        return family

    def _runs(self) -> Metric:
        family = CounterMetricFamily(
            "casemate_inference_runs", "Runs by how many rows shared them.", labels=(*_LABELS, "rows")
        )
        for rows, batch in self._counts.batches.items():
            family.add_metric((*self._labels, str(rows)), batch.compute_infer.count)
        return family
