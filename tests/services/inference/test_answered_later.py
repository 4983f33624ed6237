"""Requests that no thread waits for: who answers them, how often, and what happens to each alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest

from casemate.errors import (
    DeadlineExceeded,
    Exhausted,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    Reason,
    Unavailable,
)
from services.inference.alarm import Alarm
from services.inference.batch_jobs import CallerLeft, Later, Terms
from services.inference.serving import Batching
from tests.services.inference.counter import until
from tests.services.inference.halting import PATIENCE, POISON, WRONG, Desk, Halting
from tests.services.inference.halting import answer as answered


@pytest.fixture
def desk() -> Desk:
    return Desk(Halting())


def no_thread(_work: object) -> NoReturn:
    raise RuntimeError("cannot schedule new futures after shutdown")


def test_whoever_leads_answers_all_that_shared_its_run_and_leads_the_next(desk: Desk) -> None:
    asked = [desk.leave(1)]
    assert desk.begun() == [1]
    asked += [desk.leave(2), desk.leave(3, 4), desk.leave(5), desk.leave(6)]
    desk.go(3)
    assert [answered(each) for each in asked] == [[2], [4], [6, 8], [10], [12]]
    assert [desk.begun(), desk.begun()] == [[2, 3, 4, 5], [6]]
    assert (desk.spawned, set(desk.tellers)) == (1, {"spawned 1"})
    assert desk.statistics.current.executions == 3


def test_a_thread_that_has_an_answer_of_its_own_gives_that_and_leads_nobody_elses(desk: Desk) -> None:
    own = desk.ask(1)
    desk.begun()
    left = desk.leave(2)
    desk.go()
    assert answered(own) == [2]  # while the next run has not ended
    assert desk.begun() == [2]
    desk.go()
    assert answered(left) == [4]
    assert desk.spawned == 1


def test_requests_with_a_thread_and_without_share_a_run_whichever_leads(desk: Desk) -> None:
    first = desk.leave(1)
    desk.begun()
    asked = [desk.ask(2), desk.leave(3)]
    desk.go(2)
    assert [answered(each) for each in (first, *asked)] == [[2], [4], [6]]
    assert desk.begun() == [2, 3]
    first = desk.ask(1)
    desk.begun()
    asked = [desk.leave(2), desk.ask(3)]
    desk.go(2)
    assert [answered(each) for each in (first, *asked)] == [[2], [4], [6]]
    assert desk.begun() == [2, 3]


@pytest.mark.parametrize("trusted", [False, True])
def test_what_waits_for_a_version_that_is_withdrawn_is_not_run_on_it(desk: Desk, *, trusted: bool) -> None:
    running = desk.leave(1)
    desk.begun()
    waiting = [desk.leave(2), desk.ask(3)]
    until(lambda: desk.batcher.waiting == 2)
    if not trusted:
        desk.batcher.withdraw()
        with pytest.raises(FailedPrecondition):
            desk.leave(4)  # it found the version before that was taken out
    desk.go(2)
    assert answered(running) == [2]  # it was under way
    if trusted:
        assert [answered(each) for each in waiting] == [[4], [6]]
        return
    for each in waiting:
        with pytest.raises(FailedPrecondition) as refused:
            answered(each)
        assert refused.value.reason is Reason.MODEL_NOT_READY
    counts = desk.statistics.current
    assert (counts.executions, counts.shed) == (1, {"withdrawn": 3})


@pytest.mark.parametrize(("bad", "error"), [(POISON, InternalError), (WRONG, InvalidRequest)])
def test_a_request_that_fails_in_a_shared_run_fails_alone(desk: Desk, bad: float, error: type[Exception]) -> None:
    desk.leave(1)
    desk.begun()
    good, guilty, better = desk.leave(2), desk.leave(bad), desk.leave(3)
    desk.go(5)
    assert [answered(good), answered(better)] == [[4], [6]]
    with pytest.raises(error):
        answered(guilty)


def test_a_run_that_is_broken_off_is_told_to_all_of_it_and_the_next_is_led(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.leave(1)
    desk.begun()
    broken = [desk.leave(2), desk.leave(3)]
    run = desk.instance.run

    def panic(inputs: Any) -> Any:
        if len(inputs["x"]) == 2:
            raise SystemExit("a panic of compiled code")
        return run(inputs)

    monkeypatch.setattr(desk.instance, "run", panic)
    desk.go()
    for each in broken:
        with pytest.raises(InternalError):
            answered(each)
    after = desk.leave(4)
    desk.go()
    assert answered(after) == [8]


def test_an_answer_that_cannot_be_given_is_its_own_matter(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.leave(1)
    desk.begun()

    def impossible(_job: object) -> NoReturn:
        raise SystemExit("no way")

    array = {"x": np.array([[2]], np.float32)}
    terms = Terms("acme", "a", 1e9)
    desk.batcher.submit(
        array, rows=1, terms=terms, statistics=desk.statistics, later=Later(impossible, desk.spawn), lead_here=False
    )
    other = desk.leave(3)
    desk.go(2)
    assert answered(other) == [6]
    assert [record.message for record in caplog.records] == ["an answer could not be given"]


def test_a_caller_that_leaves_is_told_once_and_its_rows_are_not_run(desk: Desk) -> None:
    desk.leave(1)
    desk.begun()
    gone, stays = desk.leave(2, caller="gone"), desk.leave(3)
    desk.leavers["gone"]()
    with pytest.raises(CallerLeft):
        answered(gone)
    desk.leavers["gone"]()
    desk.go(2)
    assert answered(stays) == [6]
    assert desk.begun() == [3]
    assert dict(desk.statistics.current.shed) == {"cancelled": 1}


def test_a_caller_that_had_left_before_it_was_queued_is_told(desk: Desk) -> None:
    desk.leave(1)
    desk.begun()
    told: list[Exception] = []

    def done(job: Any) -> None:
        with pytest.raises(CallerLeft) as caught:
            job.ran()
        told.append(caught.value)

    terms = Terms("acme", "a", 1e9, 0, lambda _gone: False)
    later = Later(done, desk.spawn)
    array = {"x": np.array([[2]], np.float32)}
    desk.batcher.submit(array, rows=1, terms=terms, statistics=desk.statistics, later=later, lead_here=False)
    assert (len(told), desk.batcher.waiting) == (1, 0)
    desk.go()


def test_a_deadline_that_passes_in_the_queue_ends_the_request_although_no_thread_waits_for_it(desk: Desk) -> None:
    running = desk.leave(1)
    desk.begun()
    in_time, late = desk.leave(2, within=50), desk.leave(3, within=0.005)
    desk.now += 1
    with pytest.raises(DeadlineExceeded):
        answered(late)  # the run is still under way
    assert desk.batcher.waiting == 1
    desk.go(2)
    assert [answered(running), answered(in_time)] == [[2], [4]]
    assert desk.begun() == [2]
    assert dict(desk.statistics.current.shed) == {"deadline": 1}


def test_a_full_queue_refuses_the_caller_that_has_most_in_it_and_tells_whom_it_displaces() -> None:
    desk = Desk(Halting(), queue=2)
    desk.leave(1)
    desk.begun()
    flood = [desk.leave(row, caller="flood") for row in (2, 3)]
    with pytest.raises(Exhausted):
        desk.leave(4, caller="flood")
    small = desk.leave(9, caller="small")
    with pytest.raises(Exhausted):
        answered(flood[1])
    desk.go(2)
    assert [answered(flood[0]), answered(small)] == [[4], [18]]


def test_where_no_thread_is_left_each_is_told_so_and_the_model_stays_free(desk: Desk) -> None:
    with pytest.raises(Unavailable):
        answered(desk.leave(1, spawn=no_thread))
    own = desk.ask(1)
    desk.begun()
    asked = [desk.leave(2, 3, 4, spawn=no_thread), desk.leave(5, 6, spawn=no_thread)]
    desk.go()
    assert answered(own) == [2]
    for each in asked:
        with pytest.raises(Unavailable):
            answered(each)
    after = desk.leave(7)
    desk.go()
    assert answered(after) == [14]


def test_a_thread_that_led_many_runs_lets_another_have_its_turn() -> None:
    desk = Desk(Halting(), batching=None)
    asked = [desk.leave(0)]
    desk.begun()
    asked += [desk.leave(row) for row in range(1, 20)]
    desk.go(20)
    assert [answered(each) for each in asked] == [[2 * row] for row in range(20)]
    assert desk.spawned == 2


def test_a_leader_waits_for_others_until_the_size_it_prefers_is_there() -> None:
    desk = Desk(Halting(), batching=Batching(max_rows=8, preferred_rows=(3,), window_us=100_000))
    desk.leave(1)
    desk.begun()
    asked = [desk.leave(2)]
    desk.go()
    asked += [desk.leave(3), desk.leave(4)]
    desk.go(3)
    assert [answered(each) for each in asked] == [[4], [6], [8]]


def test_each_of_many_is_told_once_while_callers_leave_and_deadlines_pass() -> None:
    desk = Desk(Halting(free=True), queue=4096)
    told: list[int] = []

    def bring(first: int) -> None:
        for number in range(first, first + 200):
            leaver: list[Callable[[], None]] = []
            stays = lambda gone, leaver=leaver: leaver.append(gone) is None  # noqa: E731
            terms = Terms("acme", f"c{number % 7}", desk.now + (0.0005 if number % 3 == 0 else 1e9), 0, stays)
            later = Later(lambda _job, number=number: told.append(number), desk.spawn)
            array = {"x": np.array([[number]], np.float32)}
            try:
                desk.batcher.submit(
                    array, rows=1, terms=terms, statistics=desk.statistics, later=later, lead_here=number % 2 == 0
                )
            except (DeadlineExceeded, Exhausted):  # too late, or it would be: then nobody else tells
                told.append(number)
            if number % 5 == 0:
                for leave in leaver:
                    leave()
            if number % 50 == 0:
                desk.now += 0.001

    threads = [threading.Thread(target=bring, args=(first,)) for first in (0, 200, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    until(lambda: len(told) == 600 and desk.batcher.running == 0)
    assert sorted(told) == list(range(600))
    assert desk.batcher.waiting == 0


def test_an_alarm_rings_at_the_earliest_moment_and_again_when_it_is_told_to() -> None:
    now, rung, ended = [0.0], threading.Semaphore(0), threading.Event()

    def ring() -> float | None:
        rung.release()
        return None if ended.is_set() else now[0] + 0.001

    alarm = Alarm(ring, now=lambda: now[0])
    alarm.at(1e9)
    assert not rung.acquire(blocking=False)
    alarm.at(0.001)
    now[0] = 1.0
    assert rung.acquire(timeout=PATIENCE)
    now[0] = 2.0
    assert rung.acquire(timeout=PATIENCE)
    ended.set()
    now[0] = 3.0
    assert rung.acquire(timeout=PATIENCE)
    now[0] = 4.0
    alarm.at(4.0)  # its thread may be gone: it rings all the same
    assert rung.acquire(timeout=PATIENCE)


def test_a_request_that_a_leader_put_back_keeps_its_deadline() -> None:
    desk = Desk(Halting(), batching=Batching(max_rows=8, preferred_rows=(2, 8), window_us=20_000_000))
    desk.leave(1)
    desk.begun()
    pair, back = [desk.leave(2), desk.leave(3)], desk.leave(4, within=0.1)
    desk.go()
    until(lambda: desk.batcher.waiting == 0)  # all three are taken, and their leader waits for more
    other = desk.leave(5, within=0.005)
    desk.now += 0.01
    with pytest.raises(DeadlineExceeded):
        answered(other)  # the alarm has looked, and found none after it
    more = desk.leave(*range(6, 12))  # enough to go on with, and too much to take along
    assert desk.begun() == [2, 3]
    assert desk.batcher.waiting == 2
    desk.now += 30
    with pytest.raises(DeadlineExceeded):
        answered(back)  # the run is still under way
    desk.go(2)
    assert [answered(each) for each in (*pair, more)] == [[4], [6], [12, 14, 16, 18, 20, 22]]


def test_a_request_that_waits_is_answered_once_although_no_thread_is_left_to_watch_its_deadline(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = desk.leave(1)
    desk.begun()

    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError(f"can't start new thread {thread.name}")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        second = desk.leave(2, within=0.1)
    assert "no thread is left" in caplog.text
    late = desk.leave(3, within=0.005)
    desk.now += 0.01
    with pytest.raises(DeadlineExceeded):
        answered(late)  # there are threads again
    desk.go(2)
    assert [answered(first), answered(second)] == [[2], [4]]


def test_what_waited_for_a_thread_is_not_run_once_nobody_waits_for_it(desk: Desk) -> None:
    held: list[Callable[[], object]] = []
    desk.go(2)
    late = desk.leave(1, within=1, spawn=held.append)
    desk.now += 2
    held.pop()()
    with pytest.raises(DeadlineExceeded):
        answered(late)
    gone = desk.leave(2, caller="gone", spawn=held.append)
    desk.leavers["gone"]()
    held.pop()()
    with pytest.raises(CallerLeft):
        answered(gone)
    stays = desk.leave(3, within=3, caller="stays", spawn=held.append)
    desk.now += 2
    held.pop()()
    assert answered(stays) == [6]
    assert desk.begun() == [3]
    assert dict(desk.statistics.current.shed) == {"deadline": 1, "cancelled": 1}


def test_what_expired_before_a_leader_gathered_is_ended_and_not_taken_along(desk: Desk) -> None:
    desk.leave(1)
    desk.begun()
    leader, late, beside = desk.leave(2), desk.leave(3, within=50), desk.leave(4)
    desk.now += 60  # the alarm sleeps by the machine's clock, and has not looked yet
    desk.go(2)
    assert [answered(leader), answered(beside)] == [[4], [8]]
    with pytest.raises(DeadlineExceeded):
        answered(late)
    assert desk.begun() == [2, 4]
