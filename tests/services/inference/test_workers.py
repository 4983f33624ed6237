"""What a supervisor does with workers that die or hang, and what its board remembers of their inputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from casemate.errors import ConfigurationError, FailedPrecondition, InvalidRequest, Reason
from services.inference.board import REMEMBERED_S, SupervisorBoard, WorkerBoard
from services.inference.last_words import LastWords
from services.inference.workers import Supervisor, WorkerLimits, reserve

PATIENCE = 30.0
ROOT = Path(__file__).parents[3]
MODEL, OTHER = b"m" * 32, b"o" * 32
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
    digest, alone = worker.mark(X, MODEL)
    assert not alone
    worker.begin([digest])
    assert board.died(0) == 1
    assert other.mark(X, MODEL) == (digest, True)
    other.begin([digest])
    board.died(1)
    with pytest.raises(InvalidRequest):
        worker.mark(X, MODEL)
    assert worker.mark(X, OTHER)[1] is False
    assert worker.mark({"x": X["x"] * 2}, MODEL)[1] is False


def test_an_input_that_was_there_by_chance_is_run_again_after_a_while() -> None:
    now = [0.0]
    board = SupervisorBoard(1, now=lambda: now[0])
    worker = WorkerBoard(board.descriptor, 0)
    for _ in range(2):
        worker.begin([worker.mark(X, MODEL)[0]])
        board.died(0)
    now[0] = REMEMBERED_S
    board.forget()
    with pytest.raises(InvalidRequest):
        worker.mark(X, MODEL)
    now[0] += 1
    board.forget()
    assert worker.mark(X, MODEL)[1] is False


def test_what_had_ended_when_its_worker_died_is_under_no_suspicion() -> None:
    board = SupervisorBoard(1)
    worker = WorkerBoard(board.descriptor, 0)
    digest, _ = worker.mark(X, MODEL)
    worker.end(worker.begin([digest]))
    assert board.died(0) == 0
    assert worker.mark(X, MODEL) == (digest, False)


def ends(worker: WorkerBoard, board: SupervisorBoard, *, input_of: float, key: bytes = MODEL, **how: object) -> None:
    """A run of a new input begins in this thread, and its worker ends."""
    worker.begin([worker.mark({"x": X["x"] * input_of}, key + b"tenant")[0]])
    board.died(0, **how)


def test_a_model_that_ended_two_workers_by_whatever_input_rests_for_a_while_and_others_do_not() -> None:
    now, here = [0.0], threading.get_ident()
    board = SupervisorBoard(1, now=lambda: now[0])
    worker = WorkerBoard(board.descriptor, 0)
    ends(worker, board, input_of=1, thread=here)
    assert not worker.rests(MODEL)
    worker.mark({"x": X["x"] * 5}, MODEL + b"tenant")
    ends(worker, board, input_of=2, thread=here)
    assert worker.rests(MODEL)
    with pytest.raises(FailedPrecondition) as caught:
        worker.mark({"x": X["x"] * 5}, MODEL + b"another tenant")
    assert caught.value.reason is Reason.MODEL_REFUSED
    with pytest.raises(FailedPrecondition), worker.loading(MODEL):
        pass
    worker.mark(X, OTHER + b"tenant")
    with worker.loading(OTHER):
        pass
    now[0] = REMEMBERED_S + 1
    board.forget()
    worker.mark({"x": X["x"] * 5}, MODEL + b"tenant")
    assert not worker.rests(MODEL)


def test_what_ran_beside_the_thread_that_died_is_under_no_suspicion_nor_is_a_model_where_no_thread_is_known() -> None:
    board = SupervisorBoard(1)
    worker = WorkerBoard(board.descriptor, 0)
    mark, _ = worker.mark(X, MODEL + b"tenant")
    for thread in (threading.get_ident() + 1, None):
        for _ in range(2 if thread else 1):
            worker.begin([mark])
            assert board.died(0, thread=thread) == 1
        assert not worker.rests(MODEL)
        assert worker.mark(X, MODEL + b"tenant") == (mark, thread is None)  # by no thread: the input is suspected


def test_a_model_that_ends_workers_while_it_is_loaded_is_loaded_no_more() -> None:
    board = SupervisorBoard(1)
    worker = WorkerBoard(board.descriptor, 0)
    for _ in range(2):
        loading = worker.loading(MODEL)
        loading.__enter__()  # and its worker ends
        board.died(0, thread=threading.get_ident())
    with pytest.raises(FailedPrecondition), worker.loading(MODEL):
        pass
    with worker.loading(OTHER):
        pass
    assert board.died(0) == 0


def test_a_model_whose_runs_outlast_four_workers_rests_and_one_whose_runs_were_short_does_not() -> None:
    began = [0.0]
    board = SupervisorBoard(1, now=lambda: 100.0)
    worker = WorkerBoard(board.descriptor, 0, now=lambda: began[0])
    for number in range(4):
        assert not worker.rests(MODEL)
        began[0] = 99.0
        worker.begin([worker.mark({"x": X["x"] * (100 + number)}, OTHER + b"tenant")[0]])
        began[0] = 0.0
        ends(worker, board, input_of=number, outlasted=90.0)
    assert worker.rests(MODEL)
    assert not worker.rests(OTHER)


DYING = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from services.inference.last_words import leave_last_words
leave_last_words(int(sys.argv[1]))
def die():
    print(threading.get_ident(), flush=True)
    os.kill(os.getpid(), signal.{signal}) if {kill} else signal.pthread_kill(threading.get_ident(), signal.{signal})
thread = threading.Thread(target=die)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("number", "cause"), [("SIGFPE", "Floating point exception"), ("SIGSEGV", "Segmentation fault")]
)
def test_a_process_says_in_which_thread_it_died_and_one_that_was_killed_says_nothing(number: str, cause: str) -> None:
    for kill in (False, True):
        words = LastWords()
        code = DYING.format(root=str(ROOT), signal="SIGKILL" if kill else number, kill=kill)
        done = subprocess.run(
            [sys.executable, "-c", code, str(words.descriptor)],
            pass_fds=[words.descriptor],
            stdout=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == -getattr(signal, "SIGKILL" if kill else number)
        assert words.read() == (("", None) if kill else (cause, int(done.stdout)))
        words.close()


def test_a_port_held_by_another_is_one_clear_line() -> None:
    held, address = reserve("127.0.0.1:0")
    again, same = reserve(address)  # ours share it
    assert same == address
    again.close()
    held.close()
    with pytest.raises(ConfigurationError, match="cannot be bound"):
        reserve("203.0.113.1:7402")
