"""One page of metrics for all workers: each sample with the worker that it is from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from casemate.transport.exposition import read_page, write_page
from casemate.transport.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.inference.workers import Supervisor

_ANSWER_S = 2.0


class WorkerMetrics(Metrics):
    """The pages of a supervisor's workers as one."""

    def __init__(self, component: str, supervisor: Supervisor) -> None:
        super().__init__(component)
        self._supervisor = supervisor

    def exposition(self) -> bytes:
        """All workers' samples, labelled; a worker that does not answer in time is missing."""
        return write_page(self.collect())

    def collect(self) -> Iterator[Metric]:
        """The merged families."""
        families: dict[str, Metric] = {}
        for index, worker in enumerate(self._supervisor.workers):
            page = worker.metrics(_ANSWER_S) if worker is not None else ""
            for family in read_page(page):
                samples = [
                    Sample(sample.name, {**sample.labels, "worker": str(index)}, sample.value)
                    for sample in family.samples
                ]
                known = families.setdefault(family.name, family)
                known.samples = samples if known is family else [*known.samples, *samples]
        yield from families.values()
        serving = GaugeMetricFamily("casemate_workers_ready", "Workers that serve.")
        serving.add_metric((), sum(1 for worker in self._supervisor.workers if worker is not None and worker.ready))
        yield serving
        replaced = CounterMetricFamily("casemate_workers_replaced", "Workers that were replaced.", labels=("why",))
        for why, count in self._supervisor.replaced.items():
            replaced.add_metric((why,), count)
        yield replaced
