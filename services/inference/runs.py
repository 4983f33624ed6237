"""The runs themselves: one request's, or one that several share and that is split among them.

If this fails: rows of one request answer another. Rows are therefore counted before they are
split; what a shared run cannot answer row by row is run again, one request at a time.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np

from casemate.errors import InternalError
from services.inference.latency import Lightness

if TYPE_CHECKING:
    from services.inference.batch_jobs import Job
    from services.inference.instance import Instance

_TIMED = 8  # every so-manieth run; asking the kernel costs as much as some models do
_LOGGER = logging.getLogger(__name__)


class Runs:
    """Runs of one model, by whichever thread asks.

    Args:
        instance: computes.
        merges: several requests may share one; falls for good when one of those gave another number of rows.
        pad_lone_row: a run of one row is made with that row twice, if requests share runs.
    """

    def __init__(self, instance: Instance, *, merges: bool, pad_lone_row: bool) -> None:
        self._instance = instance
        self._pad = pad_lone_row
        self._turn = 0
        self.merges = merges
        self.lightness = Lightness()

    def compute(self, batch: list[Job]) -> None:
        """Answers all of them, or leaves each with its error."""
        if len(batch) > 1:
            try:
                self._together(batch)
            except Exception:  # noqa: BLE001, S110  # one of them is to blame; alone, each gets its own answer
                pass
            else:
                return
        for job in batch:
            try:
                self.alone(job)
            except Exception as error:  # noqa: BLE001  # raised again in the request's own thread
                job.error = error

    def alone(self, job: Job) -> None:
        """Answers one by a run of its own.

        Raises:
            InvalidRequest: the values do not fit the model.
            InternalError: the model failed.
        """
        began = time.perf_counter_ns()
        padded = self._pad and job.rows == 1 and job.shape is not None
        inputs = {name: np.concatenate((array, array)) for name, array in job.inputs.items()} if padded else job.inputs
        timed = self._turn % _TIMED == 0
        self._turn += 1
        ready, cpu = time.perf_counter_ns(), time.thread_time_ns() if timed else 0
        outputs = self._instance.run(inputs)
        ran = time.perf_counter_ns()
        if timed:
            # Of this thread alone: on a busy machine the clock on the wall says little about a run.
            self.lightness.learn(time.thread_time_ns() - cpu, job.inputs)
        job.outputs = {name: array[:1] for name, array in outputs.items()} if padded else outputs
        job.infer_ns = ran - ready
        job.statistics.executed(
            rows=job.rows, input_ns=ready - began, infer_ns=ran - ready, output_ns=time.perf_counter_ns() - ran
        )

    def _together(self, batch: list[Job]) -> None:
        """One run for all; raises, with nothing answered, when it cannot be split."""
        began = time.perf_counter_ns()
        inputs = {name: np.concatenate([job.inputs[name] for job in batch]) for name in batch[0].inputs}
        ready = time.perf_counter_ns()
        outputs = self._instance.run(inputs)
        ran = time.perf_counter_ns()
        rows = sum(job.rows for job in batch)
        if any(array.ndim == 0 or array.shape[0] != rows for array in outputs.values()):
            self.merges = False
            _LOGGER.error("a run of %d rows did not give as many: this model's requests run alone from now on", rows)
            raise InternalError("the model does not answer row by row")
        start = 0
        for job in batch:
            stop = start + job.rows
            job.outputs = {name: array[start:stop] for name, array in outputs.items()}
            job.infer_ns = ran - ready
            start = stop
        batch[0].statistics.executed(
            rows=rows, input_ns=ready - began, infer_ns=ran - ready, output_ns=time.perf_counter_ns() - ran
        )
