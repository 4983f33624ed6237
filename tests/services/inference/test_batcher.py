"""Who shares a run, who waits, who is refused: the clock and the runs are in the test's hand."""

from __future__ import annotations

import numpy as np
import pytest

from casemate.errors import DeadlineExceeded, Exhausted, InternalError, InvalidRequest
from services.inference.batch_jobs import CallerLeft, Terms
from services.inference.batcher import Batcher
from services.inference.serving import Batching, Serving
from tests.services.inference.halting import PATIENCE, POISON, WRONG, Desk, Halting, answer


@pytest.fixture
def desk() -> Desk:
    return Desk(Halting())


def test_a_free_instance_takes_a_request_at_once_and_alone(desk: Desk) -> None:
    asked = desk.ask(1)
    assert desk.begun() == [1]
    desk.go()
    assert answer(asked) == [2]
    assert desk.batcher.waiting == 0


def test_what_queued_while_the_instance_was_busy_shares_the_next_run_and_each_gets_its_own_rows(desk: Desk) -> None:
    first = desk.ask(1)
    desk.begun()
    others = [desk.ask(2), desk.ask(3, 4), desk.ask(5)]
    desk.go(2)
    assert answer(first) == [2]
    assert [answer(asked) for asked in others] == [[4], [6, 8], [10]]
    assert desk.begun() == [2, 3, 4, 5]
    counts = desk.statistics.current
    assert (counts.executions, {rows: batch.compute_infer.count for rows, batch in counts.batches.items()}) == (
        2,
        {1: 1, 4: 1},
    )


def test_a_run_takes_no_more_rows_than_the_model_allows(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2, 3), desk.ask(4, 5), desk.ask(6)]
    desk.go(3)
    assert [answer(each) for each in asked] == [[4, 6], [8, 10], [12]]
    assert [desk.begun(), desk.begun()] == [[2, 3, 4, 5], [6]]


def test_a_request_larger_than_a_batch_runs_alone(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2, 3, 4, 5, 6), desk.ask(7)]
    desk.go(3)
    assert [answer(each) for each in asked] == [[4, 6, 8, 10, 12], [14]]
    assert [desk.begun(), desk.begun()] == [[2, 3, 4, 5, 6], [7]]


def test_tenants_never_share_a_run(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2, tenant="acme"), desk.ask(3, tenant="globex"), desk.ask(4, tenant="acme")]
    desk.go(3)
    assert [answer(each) for each in asked] == [[4], [6], [8]]
    assert sorted((desk.begun(), desk.begun())) == [[2, 4], [3]]


def test_tenants_share_a_run_when_the_model_says_so() -> None:
    desk = Desk(Halting(), batching=Batching(max_rows=4, share_between_tenants=True))
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2, tenant="acme"), desk.ask(3, tenant="globex"), desk.ask(4, tenant="acme")]
    desk.go(2)
    assert [answer(each) for each in asked] == [[4], [6], [8]]
    assert sorted(desk.begun()) == [2, 3, 4]


def test_without_batching_each_request_runs_alone() -> None:
    desk = Desk(Halting(), batching=None)
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2), desk.ask(3)]
    desk.go(3)
    assert [answer(each) for each in asked] == [[4], [6]]
    assert [desk.begun(), desk.begun()] == [[2], [3]]


@pytest.mark.parametrize(("bad", "error"), [(POISON, InternalError), (WRONG, InvalidRequest)])
def test_a_request_that_fails_fails_alone(desk: Desk, bad: float, error: type[Exception]) -> None:
    desk.ask(1)
    desk.begun()
    good, guilty = desk.ask(2), desk.ask(bad, caller="b")
    desk.go(4)
    assert answer(good) == [4]
    with pytest.raises(error):
        answer(guilty)
    assert [desk.begun() for _ in range(3)] == [[2, bad], [2], [bad]]


def test_a_run_that_gives_other_rows_than_it_took_is_never_split(desk: Desk) -> None:
    desk.instance.rows_lost = 1
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2), desk.ask(3)]
    desk.go(9)
    assert [answer(each) for each in asked] == [[4], [6]]
    assert [desk.begun() for _ in range(3)] == [[2, 3], [2], [3]]
    # From now on nothing is put together.
    while desk.instance.go.acquire(blocking=False):
        pass
    desk.ask(4)
    desk.begun()
    later = [desk.ask(5), desk.ask(6)]
    desk.go(3)
    assert [answer(each) for each in later] == [[10], [12]]
    assert [desk.begun(), desk.begun()] == [[5], [6]]


def test_a_deadline_that_passes_in_the_queue_ends_the_request_before_its_work_begins(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    late, other = desk.ask(2, within=5), desk.ask(3, within=50, caller="b")
    desk.now += 6
    desk.go(2)
    with pytest.raises(DeadlineExceeded):
        answer(late)
    assert answer(other) == [6]
    assert desk.begun() == [3]
    counts = desk.statistics.current
    assert (counts.executions, dict(counts.shed)) == (2, {"deadline": 1})


def test_a_deadline_that_has_passed_already_is_not_even_queued(desk: Desk) -> None:
    with pytest.raises(DeadlineExceeded):
        answer(desk.ask(1, within=0))
    assert desk.statistics.current.executions == 0


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    desk = Desk(Halting(), queue=2)
    running = desk.ask(1)
    desk.begun()
    waiting = [desk.ask(2), desk.ask(3)]
    with pytest.raises(Exhausted) as caught:
        answer(desk.ask(4))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after.total_seconds() > 0
    desk.go(2)
    assert [answer(each) for each in (running, *waiting)] == [[2], [4], [6]]
    assert dict(desk.statistics.current.shed) == {"queue": 1}


def test_a_caller_that_fills_the_queue_gives_way_to_one_that_has_little_in_it() -> None:
    desk = Desk(Halting(), queue=3)
    desk.ask(1)
    desk.begun()
    flood = [desk.ask(row, caller="flood") for row in (2, 3, 4)]
    small = desk.ask(9, caller="small", tenant="globex")
    with pytest.raises(Exhausted):
        answer(flood[2])
    desk.go(3)
    assert answer(small) == [18]
    assert [answer(each) for each in flood[:2]] == [[4], [6]]


def test_callers_take_turns_however_many_requests_one_of_them_has() -> None:
    desk = Desk(Halting(), batching=None)
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(row, caller="flood") for row in (2, 3, 4, 5)] + [desk.ask(9, caller="small")]
    desk.go(6)
    for each in asked:
        answer(each)
    assert [desk.begun() for _ in range(5)] == [[2], [9], [3], [4], [5]]


def test_the_more_urgent_goes_first_where_the_model_has_levels() -> None:
    desk = Desk(Halting(), batching=None, priority_levels=3)
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(3, priority=3), desk.ask(2), desk.ask(1, priority=1), desk.ask(4, priority=99)]
    desk.go(5)
    for each in asked:
        answer(each)
    assert [desk.begun() for _ in range(4)] == [[1], [2], [4], [3]]


def test_without_levels_a_wish_for_priority_changes_nothing() -> None:
    desk = Desk(Halting(), batching=None)
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(2), desk.ask(3, priority=1)]
    desk.go(3)
    for each in asked:
        answer(each)
    assert [desk.begun(), desk.begun()] == [[2], [3]]


def test_a_caller_that_leaves_frees_its_place_and_its_rows_are_not_run(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    gone, stays = desk.ask(2, caller="gone"), desk.ask(3)
    desk.leavers["gone"]()
    with pytest.raises(CallerLeft):
        gone.result(timeout=PATIENCE)
    assert desk.batcher.waiting == 1
    desk.go(2)
    assert answer(stays) == [6]
    assert desk.begun() == [3]
    assert dict(desk.statistics.current.shed) == {"cancelled": 1}


def test_a_caller_that_leaves_in_the_middle_of_a_run_harms_nobody_in_it(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    gone, stays = desk.ask(2, caller="gone"), desk.ask(3, caller="stays")
    desk.go()
    assert desk.begun() == [2, 3]
    desk.leavers["gone"]()
    desk.go()
    assert answer(stays) == [6]
    gone.result(timeout=PATIENCE)
    assert answer_of_the_next(desk) == [8]


def answer_of_the_next(desk: Desk) -> list[float]:
    asked = desk.ask(4)
    desk.go()
    return answer(asked)


def test_what_cannot_be_done_in_time_is_refused_at_once_with_the_time_to_come_again() -> None:
    desk = Desk(Halting(), batching=None)
    for row in range(6):  # each run takes two seconds of the test's clock
        asked = desk.ask(row)
        desk.begun()
        desk.now += 2
        desk.go()
        answer(asked)
    desk.ask(1)
    desk.begun()
    queued = desk.ask(2, within=5)
    with pytest.raises(Exhausted) as caught:
        answer(desk.ask(3, within=5))
    assert caught.value.retry_after is not None
    # Six seconds as expected, a quarter of that for whatever was not foreseen, less the five that it has.
    assert caught.value.retry_after.total_seconds() == pytest.approx(2.5)
    in_time = desk.ask(4, within=7.5)
    desk.go(3)
    assert [answer(queued), answer(in_time)] == [[4], [8]]
    assert dict(desk.statistics.current.shed) == {"predicted": 1}


def test_a_batch_is_cut_to_the_largest_size_that_the_model_prefers() -> None:
    desk = Desk(Halting(), batching=Batching(max_rows=8, preferred_rows=(2, 4)))
    desk.ask(1)
    desk.begun()
    asked = [desk.ask(row) for row in (2, 3, 4, 5, 6, 7, 8)]
    desk.go(9)
    assert [answer(each) for each in asked] == [[row * 2.0] for row in (2, 3, 4, 5, 6, 7, 8)]
    assert [desk.begun() for _ in range(3)] == [[2, 3, 4, 5], [6, 7], [8]]


def test_under_load_a_leader_waits_for_others_until_the_size_it_prefers_is_there() -> None:
    desk = Desk(Halting(), batching=Batching(max_rows=8, preferred_rows=(3,), window_us=100_000))
    desk.ask(1)
    desk.begun()
    early = [desk.ask(2)]
    desk.now += 0.09  # 10 ms are left of the window, by the test's clock
    desk.go()
    early += [desk.ask(3), desk.ask(4)]
    desk.go(3)
    assert [answer(each) for each in early] == [[4], [6], [8]]


def test_an_idle_instance_never_waits_for_the_window() -> None:
    desk = Desk(Halting(free=True), batching=Batching(max_rows=8, preferred_rows=(8,), window_us=100_000))
    assert answer(desk.ask(1)) == [2]
    assert desk.statistics.current.executions == 1


def test_different_shapes_wait_for_a_run_of_their_own(desk: Desk) -> None:
    desk.ask(1)
    desk.begun()
    narrow = desk.ask(2)
    desk.go(3)
    wide = desk.batcher.run(
        {"x": np.ones((1, 2), np.float32)}, rows=1, terms=Terms("acme", "a", 1e9), statistics=desk.statistics
    )
    assert wide.outputs["y"].shape == (1, 2)
    assert answer(narrow) == [4]


def warmed(**serving: object) -> Desk:
    """A desk whose runs so far cost next to nothing; the next ones halt."""
    desk = Desk(Halting(free=True), batching=None, **serving)
    for _ in range(40):
        answer(desk.ask(1))
        desk.begun()
    while desk.instance.go.acquire(blocking=False):
        pass
    return desk


@pytest.mark.parametrize("limit", [{"instances": 1, "queue": 1}, {"queue": 1}])
def test_a_model_with_limits_is_held_to_them_however_short_its_runs_were(limit: dict[str, int]) -> None:
    desk = warmed(**limit)
    running = desk.ask(1)
    desk.begun()
    waiting = desk.ask(2)
    assert (desk.batcher.running, desk.batcher.waiting) == (1, 1)
    with pytest.raises(Exhausted):
        answer(desk.ask(3))
    desk.go(2)
    assert [answer(running), answer(waiting)] == [[2], [4]]


def test_without_limits_short_runs_are_not_queued_and_a_larger_request_is() -> None:
    desk = warmed()
    asked = [desk.ask(1)]
    desk.begun()
    asked.append(desk.ask(2))
    assert desk.begun() == [2]
    large = desk.ask(3, 4)
    assert (desk.batcher.running, desk.batcher.waiting) == (2, 1)
    desk.go(3)
    assert [answer(each) for each in (*asked, large)] == [[2], [4], [6, 8]]


def test_more_urgent_requests_go_first_however_short_the_runs_were() -> None:
    desk = warmed(priority_levels=2)
    asked = [desk.ask(1)]
    desk.begun()
    asked += [desk.ask(2, priority=2), desk.ask(3, priority=1)]
    desk.go(3)
    for each in asked:
        answer(each)
    assert [desk.begun(), desk.begun()] == [[3], [2]]


def test_a_model_that_computes_elsewhere_is_queued_although_waiting_for_it_costs_nothing() -> None:
    desk = Desk(Halting(), batching=None)
    desk.batcher = Batcher(desk.instance, Serving(), here=False, now=lambda: desk.now)
    desk.go(40)
    for _ in range(40):
        answer(desk.ask(1))
        desk.begun()
    desk.ask(1)
    desk.begun()
    waiting = desk.ask(2)
    assert desk.batcher.waiting == 1
    desk.go(2)
    assert answer(waiting) == [4]


def test_a_refusal_of_all_that_could_come_is_known_without_a_thread_and_none_is_made_while_one_may_be_served() -> None:
    desk = Desk(Halting(), batching=None)
    for row in range(6):  # each run takes two seconds of the test's clock
        asked = desk.ask(row)
        desk.begun()
        desk.now += 2
        desk.go()
        answer(asked)
    assert desk.batcher.refusal(desk.now, desk.statistics) is None  # free: who comes is served at once
    running = desk.ask(1)
    desk.begun()
    queued = desk.ask(2, within=60)
    refusal = desk.batcher.refusal(desk.now + 7.4, desk.statistics)
    assert refusal is not None
    assert refusal.retry_after is not None
    assert refusal.retry_after.total_seconds() == pytest.approx(0.1)
    assert desk.batcher.refusal(desk.now + 7.5, desk.statistics) is None
    desk.go(2)
    assert [answer(running), answer(queued)] == [[2], [4]]
    assert dict(desk.statistics.current.shed) == {"predicted": 1}


def test_one_that_would_only_just_miss_its_deadline_is_ended_and_the_next_one_that_need_not_is_run() -> None:
    desk = Desk(Halting(), batching=None)
    for row in range(6):
        asked = desk.ask(row)
        desk.begun()
        desk.now += 2
        desk.go()
        answer(asked)
    running = desk.ask(1)
    desk.begun()
    late, in_time = desk.ask(2, within=6), desk.ask(3, within=60)
    desk.now += 5  # three longer than expected
    desk.go(2)
    assert answer(running) == [2]
    with pytest.raises(DeadlineExceeded):
        answer(late)
    assert answer(in_time) == [6]
