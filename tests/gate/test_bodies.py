"""Whose bodies are waited for, and for how long."""

from __future__ import annotations

from datetime import timedelta

import pytest

from casemate.errors import Exhausted
from casemate.gate.adapters.bodies import LATE_CALLS, LATE_S, MEMORY_S, Bodies
from tests.gate.world import SetClock


class Call:
    """A call that can be ended."""

    def __init__(self):
        self.ended = False

    def cancel(self):
        self.ended = True


class Room:
    """Bodies and a clock that only moves when it is told to."""

    def __init__(self, within=60.0):
        self.now = 0.0
        self.clock = SetClock()
        self.clock.monotonic = lambda: self.now
        self.bodies = Bodies(clock=self.clock, within=timedelta(seconds=within))
        self.bodies.tick(0.0)

    def wait_for(self, caller, count=1):
        calls = [Call() for _ in range(count)]
        for call in calls:
            self.bodies.begin(call, caller)
        return calls

    def pass_time(self, seconds, step=0.25):
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.bodies.tick(self.now)


def test_a_caller_with_many_late_bodies_loses_all_but_a_few_and_is_refused_for_a_while():
    room = Room()
    calls, others = room.wait_for("silent", LATE_CALLS + 3), room.wait_for("other", LATE_CALLS)
    room.pass_time(LATE_S)
    assert sum(call.ended for call in calls) == 3
    assert not any(call.ended for call in others)
    for call in calls:
        if call.ended:
            room.bodies.end(call)
    with pytest.raises(Exhausted):
        room.wait_for("silent")
    room.wait_for("other")
    for call in calls:
        room.bodies.end(call)
    room.wait_for("silent")  # a suspect still has its few
    room.pass_time(MEMORY_S + 1)
    room.wait_for("silent", LATE_CALLS)


def test_many_bodies_that_arrive_in_time_make_nobody_a_suspect():
    room = Room()
    for _ in range(5):
        calls = room.wait_for("busy", 50)
        room.pass_time(LATE_S / 2)
        for call in calls:
            room.bodies.end(call)
    assert not room.bodies._suspects


def test_after_a_standstill_of_ours_nobody_is_blamed():
    room = Room()
    calls = room.wait_for("busy", 50)
    room.pass_time(30, step=30)
    assert not any(call.ended for call in calls)
    room.pass_time(LATE_S)
    assert any(call.ended for call in calls)


def test_one_late_body_ends_at_its_limit():
    room = Room(within=5.0)
    (call,) = room.wait_for("slow")
    room.pass_time(4.5)
    assert not call.ended
    room.pass_time(0.5)
    assert call.ended
