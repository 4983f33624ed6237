"""What a supervisor does with workers that die or hang, and what its board remembers of their inputs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from casemate.errors import ConfigurationError, InvalidRequest
from services.inference.board import REMEMBERED_S, SupervisorBoard, WorkerBoard
from services.inference.workers import Supervisor, WorkerLimits, reserve

PATIENCE = 30.0
ROOT = Path(__file__).parents[3]
X = {"x": np.ones((1, 4), np.float32)}

WORKER = """
import sys, threading
sys.path.insert(0, {root!r})
from services.inference.worker_link import WorkerLink
ended = threading.Event()
link = WorkerLink(int(sys.argv[2]), metrics=lambda: b"", ended=ended.set)
while not ended.wait(0.05):
    link.beat(ready=True, oldest_run={oldest})
    {then}
"""


def supervise(*, oldest: float = 0.0, then: str = "pass", **limits: object) -> tuple[Supervisor, Callable[[], None]]:
    script = WORKER.format(root=str(ROOT), oldest=oldest, then=then)
    supervisor = Supervisor(
        count=2, command=[sys.executable, "-c", script], environment=os.environ, limits=WorkerLimits(**limits)
    )
    ended, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(ended, ready.set))
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(PATIENCE)

    assert oldest or ready.wait(PATIENCE)  # one that is replaced at once is never ready for long
    return supervisor, end


def until(condition: Callable[[], bool]) -> None:
    turns, left = threading.Event(), PATIENCE / 0.02
    while not condition():
        left -= 1
        assert left > 0
        turns.wait(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_replaced_and_the_other_goes_on(number: int) -> None:
    supervisor, end = supervise()
    try:
        dead, other = (worker.pid for worker in supervisor.workers)
        os.kill(dead, number)
        until(lambda: supervisor.ready and supervisor.workers[0].pid != dead)
        assert supervisor.workers[1].pid == other
        assert supervisor.replaced == {"died": 1}
    finally:
        end()


def test_a_worker_that_says_nothing_any_more_is_replaced() -> None:
    supervisor, end = supervise(silence=timedelta(seconds=1))
    try:
        stuck = supervisor.workers[0].pid
        os.kill(stuck, signal.SIGSTOP)
        until(lambda: supervisor.workers[0] is not None and supervisor.workers[0].pid != stuck)
        assert supervisor.replaced["hangs"] >= 1
    finally:
        end()


def test_a_worker_with_a_run_that_does_not_end_is_replaced() -> None:
    supervisor, end = supervise(oldest=61.0)
    try:
        until(lambda: supervisor.replaced.get("runs for too long", 0) >= 1)
    finally:
        end()


def test_a_worker_that_outgrows_its_memory_is_replaced() -> None:
    supervisor, end = supervise(then="hoard = bytearray(b'x' * 300_000_000)", memory_bytes=250_000_000)
    try:
        until(lambda: supervisor.replaced.get("outgrew its memory", 0) >= 1)
    finally:
        end()


def test_what_ended_one_worker_runs_alone_and_what_ended_two_is_refused() -> None:
    board = SupervisorBoard(2)
    worker, other = WorkerBoard(board.descriptor, 0), WorkerBoard(board.descriptor, 1)
    digest, alone = worker.mark(X, b"model")
    assert not alone
    worker.begin([digest])
    assert board.died(0) == 1
    assert other.mark(X, b"model") == (digest, True)
    other.begin([digest])
    board.died(1)
    with pytest.raises(InvalidRequest):
        worker.mark(X, b"model")
    assert worker.mark(X, b"another model")[1] is False
    assert worker.mark({"x": X["x"] * 2}, b"model")[1] is False


def test_an_input_that_was_there_by_chance_is_run_again_after_a_while() -> None:
    now = [0.0]
    board = SupervisorBoard(1, now=lambda: now[0])
    worker = WorkerBoard(board.descriptor, 0)
    for _ in range(2):
        worker.begin([worker.mark(X, b"model")[0]])
        board.died(0)
    now[0] = REMEMBERED_S
    board.forget()
    with pytest.raises(InvalidRequest):
        worker.mark(X, b"model")
    now[0] += 1
    board.forget()
    assert worker.mark(X, b"model")[1] is False


def test_what_had_ended_when_its_worker_died_is_under_no_suspicion() -> None:
    board = SupervisorBoard(1)
    worker = WorkerBoard(board.descriptor, 0)
    digest, _ = worker.mark(X, b"model")
    worker.end(worker.begin([digest]))
    assert board.died(0) == 0
    assert worker.mark(X, b"model") == (digest, False)


def test_a_port_held_by_another_is_one_clear_line() -> None:
    held, address = reserve("127.0.0.1:0")
    again, same = reserve(address)  # ours share it
    assert same == address
    again.close()
    held.close()
    with pytest.raises(ConfigurationError, match="cannot be bound"):
        reserve("203.0.113.1:7402")
