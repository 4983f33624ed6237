"""The synchronous server's threads: whose call is served next, by count and never by the clock."""

from __future__ import annotations

import threading
from contextvars import copy_context

import pytest

from casemate.transport.fair_pool import SHARE, FairThreadPool

LIMIT_S = 10.0


def submit(pool, share, function, *arguments):
    """As grpcio does: the call's own context, in which an interceptor has named the share."""
    context = copy_context()
    context.run(SHARE.set, share)
    return pool.submit(context.run, function, *arguments)


@pytest.fixture
def gate():
    """Holds what runs until the test has filled the lines."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_of_two_lines_each_is_served_in_turn_however_long_the_other_is(gate):
    pool, served = FairThreadPool(1, name="test"), []
    submit(pool, "first", gate.wait, LIMIT_S)
    flood = [submit(pool, "flood", served.append, "flood") for _ in range(100)]
    quiet = [submit(pool, "quiet", served.append, "quiet") for _ in range(5)]
    gate.set()
    for future in (*flood, *quiet):
        future.result(LIMIT_S)
    assert served[:10].count("quiet") == 5  # twice its own five, and not a hundred before the first
    assert len(served) == 105
    pool.shutdown()


def test_a_share_of_its_own_needs_no_turn(gate):
    pool, served = FairThreadPool(1, name="test"), []
    submit(pool, "", gate.wait, LIMIT_S)
    futures = [submit(pool, "only", served.append, number) for number in range(50)]
    gate.set()
    for future in futures:
        future.result(LIMIT_S)
    assert served == list(range(50))
    pool.shutdown()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_thread_outlives_whatever_its_calls_raise(error, caplog):
    pool, served = FairThreadPool(1, name="test"), threading.Event()

    def fail():
        raise error

    for _ in range(3):
        pool.run("one", fail)
    pool.run("one", served.set)
    assert served.wait(LIMIT_S)
    assert caplog.text.count("a call left its thread by an error") == 3
    pool.shutdown()


def test_no_share_holds_every_thread(gate):
    pool, entered = FairThreadPool(8, name="test"), threading.Semaphore(0)

    def stay():
        entered.release()
        gate.wait(LIMIT_S)

    calls = [submit(pool, "flood", stay) for _ in range(7)]
    for _ in range(7):
        assert entered.acquire(timeout=LIMIT_S)
    started = pool._started
    calls += [submit(pool, "flood", stay) for _ in range(20)]
    assert pool._started == started  # nobody is woken for what may not run
    assert submit(pool, "quiet", lambda: "served").result(LIMIT_S) == "served"
    assert not entered.acquire(blocking=False)
    gate.set()
    for call in calls:
        call.result(LIMIT_S)
    pool.shutdown()


def test_what_a_call_raises_is_its_futures_and_the_thread_goes_on():
    pool = FairThreadPool(1, name="test")

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        pool.submit(fail).result(LIMIT_S)
    assert pool.submit(lambda: 1).result(LIMIT_S) == 1
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(fail)


def test_shutting_down_serves_what_waits_or_cancels_it_if_asked(gate):
    for cancel in (False, True):
        opened, entered = threading.Event(), threading.Event()
        pool = FairThreadPool(1, name="test")

        def stay(opened=opened, entered=entered):
            entered.set()
            return opened.wait(LIMIT_S)

        running = pool.submit(stay)
        assert entered.wait(LIMIT_S)  # begun, and so no longer among what waits
        waiting = pool.submit(lambda: "served")
        pool.shutdown(wait=False, cancel_futures=cancel)
        opened.set()
        assert running.result(LIMIT_S)
        assert waiting.cancelled() if cancel else waiting.result(LIMIT_S) == "served"


def test_many_shares_from_many_threads_lose_nothing():
    pool, lock, counts = FairThreadPool(4, name="test"), threading.Lock(), {}

    def count(share):
        with lock:
            counts[share] = counts.get(share, 0) + 1

    def send(share):
        for future in [submit(pool, share, count, share) for _ in range(200)]:
            future.result(LIMIT_S)

    senders = [threading.Thread(target=send, args=(f"share-{number}",)) for number in range(8)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(LIMIT_S)
    assert counts == {f"share-{number}": 200 for number in range(8)}
    pool.shutdown()  # waits for the threads, which leave their shares after their last call
    assert (pool._lines, pool._running) == ({}, {})


def test_calls_that_come_together_get_a_thread_each_although_one_was_idle(gate):
    for _ in range(50):
        pool, opened = FairThreadPool(4, name="test"), threading.Event()
        pool.submit(lambda: None).result(LIMIT_S)  # its thread is idle now, or soon
        staying = submit(pool, "stays", opened.wait, LIMIT_S)
        assert submit(pool, "other", lambda: "served").result(LIMIT_S) == "served"
        opened.set()
        assert staying.result(LIMIT_S)
        pool.shutdown()


def test_a_limit_holds_what_begins_and_may_be_lifted_again(gate):
    pool, entered = FairThreadPool(8, name="test"), threading.Semaphore(0)

    def enter():
        entered.release()
        gate.wait(LIMIT_S)

    pool.limit(2)
    for _ in range(9):
        pool.run("flood", enter)
    pool.run("quiet", enter)
    assert all(entered.acquire(timeout=LIMIT_S) for _ in range(3))
    assert pool._running == {"flood": 2, "quiet": 1}
    pool.limit(8)
    pool.run("flood", enter)
    assert all(entered.acquire(timeout=LIMIT_S) for _ in range(5))
    assert pool._running == {"flood": 7, "quiet": 1}  # as many as without a limit: one in eight stays free
    gate.set()
    pool.shutdown()


@pytest.mark.parametrize("lifted", [True, False])
def test_what_waits_for_a_limit_begins_when_it_is_lifted_though_no_other_call_comes_or_ends(gate, lifted):
    pool, entered = FairThreadPool(8, name="test"), threading.Semaphore(0)

    def enter():
        entered.release()
        gate.wait(LIMIT_S)

    pool.limit(2)
    for _ in range(4):
        pool.run("flood", enter)
    assert all(entered.acquire(timeout=LIMIT_S) for _ in range(2))
    for _ in range(1_000):
        with pool._turn:
            if len(pool._idle) == pool._started - 2:  # nobody is about to look into the lines
                break
        threading.Event().wait(0.01)
    pool.limit(8 if lifted else 2)
    if lifted:
        assert all(entered.acquire(timeout=LIMIT_S) for _ in range(2))
    running = submit(pool, "quiet", lambda: dict(pool._running)).result(LIMIT_S)
    assert running == {"flood": 4 if lifted else 2, "quiet": 1}
    gate.set()
    pool.shutdown()


@pytest.mark.parametrize("streams", [0, 3])
def test_streams_that_a_share_has_open_leave_it_as_many_threads_under_a_limit_as_without_them(gate, streams):
    """Three that wait for their peers had all that a limit of two allows, and no single call began."""
    pool, entered = FairThreadPool(8, name="test"), threading.Semaphore(0)

    def enter():
        entered.release()
        gate.wait(LIMIT_S)

    pool.limit(2)
    for _ in range(streams):
        submit(pool, "one", enter)
    for _ in range(4):
        pool.run("one", enter)
    assert all(entered.acquire(timeout=LIMIT_S) for _ in range(streams + 2))
    running = submit(pool, "quiet", lambda: dict(pool._running)).result(LIMIT_S)
    assert running == {"one": streams + 2, "quiet": 1}
    pool.limit(8)
    assert all(entered.acquire(timeout=LIMIT_S) for _ in range(2))
    gate.set()
    pool.shutdown()
    assert (pool._lines, pool._running, pool._limited) == ({}, {}, {})
