"""Who fails often waits, by its proven identity; nobody else does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from casemate.errors import Exhausted, Unauthenticated, Unavailable
from services.auth.slowing import FREE_FAILURES, Slowing
from tests.services.auth.lines import HandClock

ATTACKER, VICTIM = "spiffe://x/t/acme/attacker", "spiffe://x/t/acme/victim"


def _fail(slowing, identity, shown="secret guessed"):
    with slowing.attempt(identity, shown=shown):
        raise Unauthenticated("wrong")


def _wait(slowing, identity):
    """How long the identity has to wait now; None if it may try, and succeeds with its certificate."""
    try:
        with slowing.attempt(identity, shown="certificate "):
            return None
    except Exhausted as error:
        return error.retry_after


def test_e7_ten_thousand_bad_attempts_are_hardly_heard_and_slow_nobody_else():
    clock = HandClock()
    slowing = Slowing(clock=clock)
    heard = 0
    for _ in range(10_000):
        clock.pass_by(timedelta(milliseconds=1))
        try:
            _fail(slowing, ATTACKER)
        except Unauthenticated:
            heard += 1
        except Exhausted:
            pass
        assert _wait(slowing, VICTIM) is None
    # Ten free ones, then each twice as long after the one before: ten seconds hold six more.
    assert heard == FREE_FAILURES + 6


def test_an_attempt_that_ends_for_another_reason_counts_against_nobody_and_forgives_nothing():
    slowing = Slowing(clock=HandClock())
    for _ in range(FREE_FAILURES - 1):
        with pytest.raises(Unauthenticated):
            _fail(slowing, ATTACKER)
    for _ in range(2):
        with pytest.raises(Unavailable), slowing.attempt(ATTACKER, shown="secret guessed"):
            raise Unavailable("no database")
    assert _wait(slowing, ATTACKER) is None
    with pytest.raises(Unauthenticated):
        _fail(slowing, ATTACKER)
    assert _wait(slowing, ATTACKER) is not None


def test_each_failure_beyond_the_free_ones_doubles_the_wait_up_to_a_minute():
    clock = HandClock()
    slowing = Slowing(clock=clock)
    for _ in range(FREE_FAILURES):
        assert _wait(slowing, ATTACKER) is None
        with pytest.raises(Unauthenticated):
            _fail(slowing, ATTACKER)
    waits = []
    for _ in range(14):
        waits.append(_wait(slowing, ATTACKER).total_seconds())
        clock.pass_by(_wait(slowing, ATTACKER))
        with pytest.raises(Unauthenticated):
            _fail(slowing, ATTACKER)
    assert waits == pytest.approx([min(60.0, 0.1 * 2**n) for n in range(14)])


def test_ten_minutes_without_a_failure_are_forgiven_and_a_success_with_something_else_forgives_nothing():
    clock = HandClock()
    slowing = Slowing(clock=clock)
    for _ in range(FREE_FAILURES):
        assert _wait(slowing, ATTACKER) is None  # a success between two guesses
        with pytest.raises(Unauthenticated):
            _fail(slowing, ATTACKER)
    assert _wait(slowing, ATTACKER) is not None
    clock.pass_by(timedelta(minutes=10))
    assert _wait(slowing, ATTACKER) is None
    with pytest.raises(Unauthenticated):
        _fail(slowing, ATTACKER)
    assert _wait(slowing, ATTACKER) is None


@pytest.mark.parametrize(("last", "forgiven"), [("secret mine", True), ("secret another", False)])
def test_a_success_forgives_failures_that_showed_the_same_and_no_others(last, forgiven):
    clock = HandClock()
    slowing = Slowing(clock=clock)
    for shown in (*["secret mine"] * (FREE_FAILURES - 1), last):
        with pytest.raises(Unauthenticated):
            _fail(slowing, ATTACKER, shown)
    clock.pass_by(timedelta(seconds=1))
    with slowing.attempt(ATTACKER, shown="secret mine"):
        pass
    with pytest.raises(Unauthenticated):
        _fail(slowing, ATTACKER, "secret mine")
    assert (_wait(slowing, ATTACKER) is None) is forgiven


def test_a_crowd_of_identities_takes_bounded_memory():
    slowing = Slowing(clock=HandClock())
    for number in range(10_100):
        with pytest.raises(Unauthenticated):
            _fail(slowing, f"spiffe://x/t/acme/{number}")
    assert len(slowing._failures) == 10_000
