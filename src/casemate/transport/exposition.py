"""The text format of Prometheus, for counters as well whose names do not end in `_total`.

Prometheus takes a counter of any name; prometheus_client writes and reads only
those that end in `_total`. Dashboards made for another server ask for the names
of that server, and a sample without its type is offered to no `rate()` as one.

If this fails: a page is not read, or a counter is taken for a gauge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_COUNTER = re.compile(r"^# TYPE (\S+) counter$", re.MULTILINE)


class PlainCounterFamily(Metric):
    """A counter whose samples have its own name, which does not end in `_total`."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, text, "counter")
        self._labels = tuple(labels)

    def add_metric(self, labels: Sequence[str], value: float) -> None:
        """Adds a sample with these values of the family's labels."""
        self.add_sample(self.name, dict(zip(self._labels, labels, strict=True)), value)


def write_page(families: Iterable[Metric]) -> bytes:
    """The families as text, each with its HELP and TYPE line."""
    return b"".join(_written(family) for family in families)


def read_page(page: str) -> Iterator[Metric]:
    """The families of a page, under the names that stand there."""
    plain = {name for name in _COUNTER.findall(page) if not name.endswith("_total")}
    for family in text_string_to_metric_families(page):
        if family.type != "counter" or family.name not in plain:
            yield family
            continue
        counter = PlainCounterFamily(family.name, family.documentation)
        for sample in family.samples:
            counter.add_sample(family.name, sample.labels, sample.value)
        yield counter


class _Lone(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


def _written(family: Metric) -> bytes:
    if not isinstance(family, PlainCounterFamily):
        return generate_latest(_Lone(family))
    untyped = Metric(family.name, family.documentation, "untyped")
    untyped.samples = family.samples
    kind = f"# TYPE {family.name} ".encode()
    return generate_latest(_Lone(untyped)).replace(kind + b"untyped\n", kind + b"counter\n", 1)
