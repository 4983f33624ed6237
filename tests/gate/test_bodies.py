"""Whose bodies are waited for, and for how long."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from casemate.errors import DeadlineExceeded, Exhausted
from casemate.gate.adapters.bodies import LATE_CALLS, LATE_S, MEMORY_S, Bodies
from casemate.gate.core.admission import Admission
from casemate.gate.core.method_policy import MethodPolicy, TokenAccess
from tests.gate.adapter_world import DIGITS
from tests.gate.served import LIMIT_S, PARSED, serve
from tests.gate.world import SetClock, World, bearer


class Call:
    """A call that can be ended."""

    def __init__(self):
        self.ended = False

    def cancel(self):
        self.ended = True


class Room:
    """Bodies and a clock that only moves when it is told to."""

    def __init__(self, within=60.0, ended=None):
        self.now = 0.0
        self.clock = SetClock()
        self.clock.monotonic = lambda: self.now
        self.bodies = Bodies(clock=self.clock, within=timedelta(seconds=within), ended=ended)
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
    with pytest.raises(Exhausted):
        room.wait_for("silent")
    room.wait_for("other")
    for call in calls:
        if not call.ended:
            room.bodies.end(call)
    room.wait_for("silent")  # a suspect still has its few
    room.pass_time(MEMORY_S + 1)
    room.wait_for("silent", LATE_CALLS)


class SeenThen(dict):
    """Waits that are looked at; then, before any is judged, something happens once they are late."""

    def __init__(self, happens, waiting):
        super().__init__(waiting)
        self.happens, self.looks = happens, 0

    def values(self):
        seen = list(super().values())
        self.looks += 1
        if self.looks == 20:  # five seconds of looks: the one that would end it
            self.happens()
        return seen


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_a_message_that_comes_while_its_call_is_ended_for_it_is_not_served(leaf, monkeypatch, lane, late):
    body, arriving, end = threading.Event(), threading.Event(), Bodies.end
    trainer, world = leaf("client", tenant="acme", name="trainer"), World()
    refused = world.gate.refused

    def ending(bodies, context):
        arriving.set()
        end(bodies, context)

    def refusing(admission, error):
        body.set()  # the message is sent and comes, in this very moment
        assert arriving.wait(LIMIT_S)
        refused(admission, error)

    monkeypatch.setattr(Bodies, "end", ending)
    world.gate.refused = refusing
    within = timedelta(seconds=0.1 if late else LIMIT_S)
    if not late:
        body.set()
    with (
        serve("sync", world, leaf("service", service="datasets"), lane=lane, body_within=within) as served,
        served.channel(trainer) as channel,
    ):

        def messages():
            body.wait(LIMIT_S)
            yield DIGITS.SerializeToString()

        call = channel.stream_unary("/test.Echo/Unary").future(
            messages(), metadata=bearer(world.token(trainer)), timeout=LIMIT_S
        )
        assert call.code().name == ("DEADLINE_EXCEEDED" if late else "OK")
    assert served.echo.entered == ([] if late else [PARSED])
    assert world.audit.denials == (["DEADLINE_EXCEEDED"] if late else [])
    assert world.gate._quota.running == 0


def test_many_bodies_that_arrive_in_time_make_nobody_a_suspect():
    room = Room()
    for _ in range(5):
        calls = room.wait_for("busy", 50)
        room.pass_time(LATE_S / 2)
        for call in calls:
            room.bodies.end(call)
    assert not room.bodies._suspects


@pytest.mark.parametrize("instant", ["before it is judged", "while it is judged", "once it is noted"])
def test_a_body_of_the_very_instant_in_which_its_call_is_ended_is_served_or_noted_and_never_both(instant, monkeypatch):
    """Both threads meet in one order after the other: nothing here depends on luck."""
    outcome, call = [], Call()
    admission = Admission("id", "/x/Y", MethodPolicy(method="/x/Y", access=TokenAccess(None)), True, 0.0)  # noqa: FBT003  # by place
    monkeypatch.setattr(Call, "cancel", lambda _call: outcome.append("ended"))

    def arrives():
        try:
            room.bodies.end(call)
        except DeadlineExceeded:
            outcome.append("not served")
        else:
            outcome.append("served")

    def noted(_admission, _error):
        outcome.append("noted")
        if instant == "once it is noted":
            thread.start()  # it must wait until all is noted
            thread.join(0.01)

    thread = threading.Thread(target=arrives)
    room = Room(within=5.0, ended=noted)
    room.bodies.begin(call, "slow", admission)
    if instant == "before it is judged":
        arrives()
    elif instant == "while it is judged":
        room.bodies._waiting = SeenThen(arrives, room.bodies._waiting)
    room.pass_time(6)
    if thread.ident:
        thread.join()
    late = instant == "once it is noted"
    assert sorted(outcome) == (["ended", "not served", "noted"] if late else ["served"])
    assert not late or outcome[0] == "noted"


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
