"""Runs of a model's samples, with an end: before it is ready nothing else watches over its runs.

A sample is the publisher's, and so is the model: one whose loop does not end
would keep its upload's place, and one that behaves at its trial and not later
would keep every other model of the replica from being loaded.

If this fails: such a model does just that, until the process is started again.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import onnxruntime  # as in instance.py

from services.inference.instance import OnnxInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import timedelta
    from typing import Any

    from services.inference.instance import Instance
    from services.inference.tensors import Array, TensorSpec


class Trial:
    """An ONNX model whose runs, all of them together, are ended when their time is over.

    Args:
        instance: the model.
        within: for all runs.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, instance: OnnxInstance, *, within: timedelta, now: Callable[[], float]) -> None:
        self._instance = instance
        self._now = now
        self._ends_at = now() + within.total_seconds()

    @property
    def platform(self) -> str:
        """What computes."""
        return self._instance.platform

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._instance.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._instance.outputs

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """As the instance runs.

        Raises:
            InvalidRequest: the values do not fit the model, or the time is over.
            InternalError: the model failed.
        """
        with self._stopping() as options:
            return self._instance.run(inputs, options)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[Any]:
        options = onnxruntime.RunOptions()
        timer = threading.Timer(max(0.0, self._ends_at - self._now()), _stop, (options,))
        timer.start()
        try:
            yield options
        finally:
            timer.cancel()


def on_trial(instance: Instance, *, within: timedelta, now: Callable[[], float]) -> Instance:
    """The instance, its runs with an end; one on a back end has that back end's time limit already."""
    return Trial(instance, within=within, now=now) if isinstance(instance, OnnxInstance) else instance


def _stop(options: Any) -> None:  # noqa: ANN401  # onnxruntime ships no types
    options.terminate = True  # looked at before each node, and so in each turn of a loop
