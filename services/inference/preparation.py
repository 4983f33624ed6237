"""From an instance to a model that is ready: configuration read, samples run, queue in front."""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from services.inference.batcher import Batcher
from services.inference.instance import OnnxInstance
from services.inference.names import UPSTREAM_FILE
from services.inference.serving import Serving, read_serving
from services.inference.trial import on_trial
from services.inference.warm_up import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from services.inference.board import WorkerBoard
    from services.inference.instance import Instance

WARM_UP_WITHIN = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A warm model behind its queue; `rests` while it has ended too many workers of this service."""

    serving: Serving
    batcher: Batcher
    rests: Callable[[], bool] = lambda: False


class Preparation:
    """Makes instances ready.

    Args:
        instances: runs of one model at once, where the model does not say.
        board: where a worker notes what it runs.
        within: how long all samples of a version may take together.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        instances: int,
        board: WorkerBoard | None = None,
        within: timedelta = WARM_UP_WITHIN,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instances = instances
        self._board = board
        self._within = within
        self._now = now
        self._made: weakref.WeakSet[Batcher] = weakref.WeakSet()

    def oldest_run(self) -> float:
        """For how many seconds the oldest run of any model has been under way."""
        return max((batcher.oldest_run() for batcher in tuple(self._made)), default=0.0)

    def loading(self, files: Mapping[str, bytes]) -> AbstractContextManager[None]:
        """While a version is built and made ready in this thread: what ends the process then is on the board.

        Raises:
            FailedPrecondition: reason MODEL_REFUSED: this model has ended two workers.
        """
        return self._board.loading(_key(files)) if self._board is not None else nullcontext()

    def _rests(self, files: Mapping[str, bytes]) -> Callable[[], bool]:
        board = self._board
        return partial(board.rests, _key(files)) if board is not None else lambda: False

    def __call__(self, instance: Instance, files: Mapping[str, bytes]) -> Prepared:
        """The instance, warmed up, behind the queue that its version's files ask for.

        Raises:
            InvalidRequest: reason MODEL_INVALID: the configuration is wrong, or a sample does not run.
        """
        serving = read_serving(files)
        pad = warm_up(on_trial(instance, within=self._within, now=self._now), serving)
        batcher = Batcher(
            instance,
            serving,
            instances=self._instances,
            pad_lone_row=pad,
            board=self._board,
            key=_key(files) if self._board is not None else b"",
            here=UPSTREAM_FILE not in files,
            steady=isinstance(instance, OnnxInstance) and instance.steady,
            now=self._now,
        )
        self._made.add(batcher)
        return Prepared(serving, batcher, self._rests(files))


def available_cores() -> int:
    """The cores that this process may run on."""
    return max(1, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(files: Mapping[str, bytes]) -> bytes:
    hashed = hashlib.sha256()
    for name in sorted(files):
        hashed.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return hashed.digest()
