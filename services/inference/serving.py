"""How a model wants to be served: `serving.json`, one of the files that its publisher signed.

No client has a say in it. The file is parsed strictly: an unknown, double or
ill-typed member refuses the whole version, so a misspelt limit is never
silently no limit.

If this fails: a model is batched, or takes NaN, against its publisher's will;
whose rows may share a run is still judged per tenant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casemate.errors import FieldViolation, InvalidRequest, Reason
from casemate.signing.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVING_FILE = "serving.json"
"""The file's name in a version."""

_MAX_VALUES = 2_000_000
_MAX_SAMPLES = 16
_MAX_ROWS = 4096
_MAX_QUEUE = 4096

DEFAULT_QUEUE = 256
"""Places in the queue of a model that does not say."""
_MAX_WINDOW_US = 100_000
_MAX_LEVELS = 16
_MAX_INSTANCES = 64
_MAX_PREFERRED = 16
_MAX_DECIMALS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Which requests may share one run of the model.

    Attributes:
        max_rows: most rows in one run.
        preferred_rows: sizes that the model runs best, ascending; a batch is cut to the largest that it fills.
        window_us: how long after it was queued a request may wait for others, in microseconds. Counts
            under load only: an idle instance takes a request at once.
        share_between_tenants: rows of different tenants may share a run.
    """

    max_rows: int
    preferred_rows: tuple[int, ...] = ()
    window_us: int = 0
    share_between_tenants: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request to warm the model up with: shape and values in row-major order, by input."""

    inputs: Mapping[str, tuple[tuple[int, ...], tuple[object, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A model's serving configuration; the defaults are those of a version without `serving.json`.

    Attributes:
        batching: None: every request runs alone.
        queue: requests that may wait; the next one is refused.
        instances: runs at once; 0 leaves it to the server, which takes one per core.
        priority_levels: 1 is the most urgent; with one level, clients have no say.
        refuse_non_finite: NaN and infinities are refused; otherwise they are the model's matter.
        output_decimals: places after the point that answers in floating point are rounded to, against
            those who harvest exact scores to copy the model; None: not rounded.
        warm_up: requests that must run before the model is ready.
    """

    batching: Batching | None = None
    queue: int = DEFAULT_QUEUE
    instances: int = 0
    priority_levels: int = 1
    refuse_non_finite: bool = False
    output_decimals: int | None = None
    warm_up: tuple[Sample, ...] = field(default=(), repr=False)

    @property
    def limited(self) -> bool:
        """Whether the publisher said how many runs, places or levels there are."""
        return bool(self.instances) or self.priority_levels > 1 or self.queue != DEFAULT_QUEUE


def read_serving(files: Mapping[str, bytes]) -> Serving:
    """The configuration that a version's files give.

    Raises:
        InvalidRequest: reason MODEL_INVALID: `serving.json` is not exactly what it may be.
    """
    data = files.get(SERVING_FILE)
    if data is None:
        return Serving()
    try:
        members = parse_object(data, field=SERVING_FILE, maximum_items=_MAX_VALUES)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), reason=Reason.MODEL_INVALID, violations=error.violations) from error
    table = _Table(SERVING_FILE, members)
    serving = Serving(
        batching=_batching(table),
        queue=table.integer("queue", 1, _MAX_QUEUE, DEFAULT_QUEUE),
        instances=table.integer("instances", 1, _MAX_INSTANCES, 0),
        priority_levels=table.integer("priority_levels", 1, _MAX_LEVELS, 1),
        output_decimals=table.optional_integer("output_decimals", 0, _MAX_DECIMALS),
        refuse_non_finite=table.choice("non_finite", ("pass", "refuse"), "pass") == "refuse",
        warm_up=_samples(table),
    )
    table.end()
    if serving.batching is not None and not serving.warm_up:
        raise invalid_serving("warm_up", "must hold a sample when requests are batched: it proves that rows stay apart")
    return serving


def invalid_serving(name: str, description: str) -> InvalidRequest:
    """The refusal of one member of `serving.json`."""
    return InvalidRequest(
        f"{SERVING_FILE}: {name} {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation(f"{SERVING_FILE}.{name}", description),),
    )


def _batching(table: _Table) -> Batching | None:
    inner = table.table("batching")
    if inner is None:
        return None
    batching = Batching(
        max_rows=inner.integer("max_rows", 2, _MAX_ROWS, 32),
        preferred_rows=inner.integers("preferred_rows", 1, _MAX_ROWS, _MAX_PREFERRED),
        window_us=inner.integer("window_us", 0, _MAX_WINDOW_US, 0),
        share_between_tenants=inner.flag("share_between_tenants"),
    )
    inner.end()
    preferred = batching.preferred_rows
    if tuple(sorted(set(preferred))) != preferred or (preferred and preferred[-1] > batching.max_rows):
        raise invalid_serving("batching.preferred_rows", "must ascend and end at max_rows at most")
    return batching


def _samples(table: _Table) -> tuple[Sample, ...]:
    samples = []
    for index, given in enumerate(table.list("warm_up", _MAX_SAMPLES)):
        inner = _Table(f"warm_up[{index}]", _object(given, f"warm_up[{index}]"))
        inputs = _object(inner.take("inputs"), f"{inner.name}.inputs")
        samples.append(Sample(inputs={name: _tensor(name, value, inner.name) for name, value in inputs.items()}))
        inner.end()
    return tuple(samples)


def _tensor(name: str, given: object, where: str) -> tuple[tuple[int, ...], tuple[object, ...]]:
    table = _Table(f"{where}.inputs.{name}", _object(given, f"{where}.inputs.{name}"))
    shape = table.integers("shape", 1, 2**31 - 1, 16)
    values = tuple(table.list("values", _MAX_VALUES))
    table.end()
    if math.prod(shape) != len(values):
        raise invalid_serving(f"{table.name}.values", "are not as many as the shape says")
    return shape, values


def _object(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise invalid_serving(name, "must be an object")
    return value


class _Table:
    """The members of one object, taken one by one; what is left at the end is unknown."""

    def __init__(self, name: str, members: dict[str, object]) -> None:
        self.name = name
        self._left = dict(members)

    def take(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # any JSON
        return self._left.pop(name, default)

    def integer(self, name: str, minimum: int, maximum: int, default: int) -> int:
        return self._within(self.take(name, default), name, minimum, maximum, default)

    def optional_integer(self, name: str, minimum: int, maximum: int) -> int | None:
        if name not in self._left:
            return None
        return self._within(self.take(name), name, minimum, maximum, None)

    def integers(self, name: str, minimum: int, maximum: int, most: int) -> tuple[int, ...]:
        return tuple(self._within(value, name, minimum, maximum, None) for value in self.list(name, most))

    def flag(self, name: str) -> bool:
        value = self.take(name, False)  # noqa: FBT003  # a JSON value
        if not isinstance(value, bool):
            raise invalid_serving(self._full(name), "must be true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.take(name, default)
        if not isinstance(value, str) or value not in choices:
            raise invalid_serving(self._full(name), f"must be one of {', '.join(choices)}")
        return value

    def list(self, name: str, most: int) -> list[object]:
        value = self.take(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise invalid_serving(self._full(name), f"must be a list of at most {most}")
        return value

    def table(self, name: str) -> _Table | None:
        if name not in self._left:
            return None
        return _Table(self._full(name), _object(self.take(name), self._full(name)))

    def end(self) -> None:
        for name in sorted(self._left)[:1]:
            raise invalid_serving(self._full(name), "is not known")

    def _full(self, name: str) -> str:
        return name if self.name == SERVING_FILE else f"{self.name}.{name}"

    def _within(self, value: object, name: str, minimum: int, maximum: int, default: int | None) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid_serving(self._full(name), "must be a whole number")
        if value != default and not minimum <= value <= maximum:
            raise invalid_serving(self._full(name), f"must be {minimum} to {maximum}")
        return value
