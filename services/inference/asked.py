"""One request for a prediction: its tensors, and the account of its time and its end.

If this fails: statistics and traces are wrong; no answer changes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from casemate.errors import DeadlineExceeded, Exhausted, InternalError
from services.inference.batch_jobs import CallerLeft
from services.inference.non_finite import require_finite
from services.inference.validation import read_tensors

if TYPE_CHECKING:
    from typing import Self

    from services.inference.batch_jobs import Ran
    from services.inference.loader import LoadedModel
    from services.inference.tracing import Trace
    from services.inference.validation import Limits, Tensors
    from services.inference.wire_guard import InferRequest


class Asked:
    """A request on its way; inside of `with`, whatever is raised is counted as its failure, once.

    Args:
        loaded: the model.
        request: what is asked of it.
        trace: set when this call is traced.
    """

    __slots__ = ("_began", "_read", "_trace", "loaded", "request", "tensors")

    tensors: Tensors

    def __init__(self, loaded: LoadedModel, request: InferRequest, trace: Trace | None) -> None:
        self.loaded, self.request, self._trace = loaded, request, trace
        self._began = self._read = time.perf_counter_ns()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        ns = time.perf_counter_ns() - self._began
        self.loaded.statistics.failed(ns, failure(error))
        if self._trace is not None:
            self._trace.ended(model=str(self.loaded.slot), outcome=failure(error), total=ns // 1000)

    def read(self, limits: Limits) -> Tensors:
        """Makes arrays of it.

        Raises:
            InvalidRequest: with every violation found.
        """
        instance = self.loaded.instance
        tensors = read_tensors(self.request, inputs=instance.inputs, outputs=instance.outputs, limits=limits)
        if self.loaded.serving.refuse_non_finite:
            require_finite(tensors.inputs, instance.inputs)
        self.tensors, self._read = tensors, time.perf_counter_ns()
        return tensors

    def answered(self, ran: Ran, *, since: int) -> None:
        """Counts it as a success; its answer was made since then, in nanoseconds of `perf_counter_ns`."""
        ended, rows = time.perf_counter_ns(), self.tensors.rows
        self.loaded.statistics.succeeded(
            rows=rows,
            total_ns=ended - self._began,
            queue_ns=ran.queue_ns,
            input_ns=self._read - self._began,
            infer_ns=ran.infer_ns,
            output_ns=ended - since,
        )
        if self._trace is not None:
            self._trace.ended(
                model=str(self.loaded.slot),
                outcome="OK",
                rows=rows,
                total=(ended - self._began) // 1000,
                input=(self._read - self._began) // 1000,
                queue=ran.queue_ns // 1000,
                infer=ran.infer_ns // 1000,
                output=(ended - since) // 1000,
            )


def failure(error: BaseException) -> str:
    """Triton's word for why a call failed."""
    if isinstance(error, CallerLeft):
        return "CANCELED"
    if isinstance(error, Exhausted | DeadlineExceeded):
        return "REJECTED"
    return "BACKEND" if isinstance(error, InternalError) else "OTHER"
