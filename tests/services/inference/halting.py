"""A model whose runs wait until a test lets them go."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from casemate.errors import InternalError, InvalidRequest
from services.inference.batch_jobs import Job, Later, Ran, Terms
from services.inference.batcher import Batcher
from services.inference.serving import Batching, Serving
from services.inference.statistics import Statistics
from services.inference.tensors import DATATYPES, TensorSpec

PATIENCE = 20.0
NEVER = 1e9
POISON = -1.0
WRONG = -2.0


class Halting:
    """Doubles its rows. Each run is told to `begun`, and goes on when `go` allows it."""

    inputs = (TensorSpec("x", DATATYPES["FP32"], (-1, 1)),)
    outputs = (TensorSpec("y", DATATYPES["FP32"], (-1, 1)),)

    def __init__(self, *, free: bool = False) -> None:
        self.begun: queue.SimpleQueue[list[float]] = queue.SimpleQueue()
        self.go = threading.Semaphore(1_000_000 if free else 0)
        self.rows_lost = 0

    def run(self, inputs):
        rows = inputs["x"][:, 0].tolist()
        self.begun.put(rows)
        assert self.go.acquire(timeout=PATIENCE)
        if POISON in rows:
            raise InternalError("a poisonous row")
        if WRONG in rows:
            raise InvalidRequest("a wrong row")
        return {"y": inputs["x"][: len(rows) - (self.rows_lost if len(rows) > 1 else 0)] * 2}


class Desk:
    """A batcher and the threads of its callers; its clock is the test's."""

    def __init__(self, instance: Halting, **serving: object) -> None:
        self.instance = instance
        self.now = 100.0
        self.statistics = Statistics()
        batching = serving.pop("batching", Batching(max_rows=4))
        self.batcher = Batcher(instance, Serving(batching=batching, **serving), now=lambda: self.now)
        self.leavers: dict[str, Callable[[], None]] = {}
        self.spawned = 0
        self.tellers: list[str] = []

    def ask(self, *rows: float, tenant: str = "acme", caller: str = "a", within: float = NEVER, priority: int = 0):
        """A request in a thread of its own, as a server's handler; returns once it runs or waits."""
        before = self.batcher.running
        asked: Future[Ran] = Future()
        queued = threading.Event()

        def stays(gone: Callable[[], None]) -> bool:
            self.leavers[caller] = gone
            queued.set()
            return True

        terms = Terms(tenant, caller, self.now + within, priority, stays)
        array = np.array(rows, dtype=np.float32).reshape(-1, 1)

        def call() -> None:
            try:
                asked.set_result(
                    self.batcher.run({"x": array}, rows=len(rows), terms=terms, statistics=self.statistics)
                )
            except Exception as error:  # noqa: BLE001  # raised where the test asks for the answer
                asked.set_exception(error)

        threading.Thread(target=call, daemon=True).start()
        while not (asked.done() or self.batcher.running > before) and not queued.wait(0.001):
            pass
        return asked

    def leave(self, *rows: float, caller: str = "a", within: float = NEVER, spawn: object = None) -> Future[Ran]:
        """A request that no thread waits for, brought by this one; `spawn` gives threads in place of ours."""
        asked: Future[Ran] = Future()

        def stays(gone: Callable[[], None]) -> bool:
            self.leavers[caller] = gone
            return True

        def done(job: Job) -> None:
            self.tellers.append(threading.current_thread().name)
            try:
                asked.set_result(job.ran())
            except Exception as error:  # noqa: BLE001  # raised where the test asks for the answer
                asked.set_exception(error)

        self.batcher.submit(
            {"x": np.array(rows, dtype=np.float32).reshape(-1, 1)},
            rows=len(rows),
            terms=Terms("acme", caller, self.now + within, 0, stays),
            statistics=self.statistics,
            later=Later(done, spawn or self.spawn),
            lead_here=False,
        )
        return asked

    def spawn(self, work: Callable[[], object]) -> None:
        """A thread for some work."""
        self.spawned += 1
        threading.Thread(target=work, name=f"spawned {self.spawned}", daemon=True).start()

    def begun(self) -> list[float]:
        """The rows of the next run that begins."""
        return self.instance.begun.get(timeout=PATIENCE)

    def go(self, runs: int = 1) -> None:
        """Lets so many runs end."""
        self.instance.go.release(runs)


def answer(asked: Future[Ran]) -> list[float]:
    """What a request was answered."""
    return asked.result(timeout=PATIENCE).outputs["y"][:, 0].tolist()
