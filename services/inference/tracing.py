"""Traces of single requests: joined to the caller's by W3C `traceparent`, chosen by us alone.

A caller's `sampled` flag is not looked at: whoever could order a trace of each
request would order work. Every n-th request is traced, in one line of the log.

If this fails: lines are missing, or too many are written; no answer changes.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

TRACEPARENT: Final = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trace:
    """One traced request.

    Attributes:
        trace_id: 32 hex digits; the caller's when it sent a valid one.
        span_id: 16 hex digits, ours.
        parent_id: the caller's span; empty when there is none.
    """

    trace_id: str
    span_id: str
    parent_id: str = ""

    def ended(self, *, model: str, outcome: str, rows: int = 0, **microseconds: int) -> None:
        """Writes the request's line."""
        times = " ".join(f"{name}_us={value}" for name, value in microseconds.items())
        _LOGGER.info(
            "span trace_id=%s span_id=%s parent_id=%s model=%s outcome=%s rows=%d %s",
            self.trace_id,
            self.span_id,
            self.parent_id or "-",
            model,
            outcome,
            rows,
            times,
        )


class Sampler:
    """Chooses which requests are traced.

    Args:
        one_in: every so-manieth; 0 for none.
    """

    def __init__(self, *, one_in: int) -> None:
        self._one_in = one_in
        self._calls = itertools.count(1)

    def choose(self) -> bool:
        """Whether this request is one of them."""
        return self._one_in > 0 and next(self._calls) % self._one_in == 0


def begin(metadata: Iterable[tuple[str, str | bytes]]) -> Trace:
    """A trace under the caller's `traceparent`, or a new one when there is none, two, or a malformed one."""
    given = [value for key, value in metadata if key == TRACEPARENT]
    found = _FORM.fullmatch(given[0]) if len(given) == 1 and isinstance(given[0], str) else None
    span_id = secrets.token_hex(8)
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return Trace(secrets.token_hex(16), span_id)
    return Trace(found[1], span_id, found[2])
