"""On the lane, a flood of one tenant has another one's call wait for one turn of its own, and not for all of them."""

from __future__ import annotations

import itertools
import time
from typing import Any

import grpc
import pytest

from casemate.transport import lane
from casemate.transport.lane_pressure import Pressure
from casemate.transport.lane_turns import STRANGERS, LinesOfConnections, Turns
from casemate.transport.registry import RegisteredService
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import World, grant

FLOOD = 40
ENOUGH = 8
"""Turns of the flood that wait when the other tenant's comes: what they would cost it in one line for all."""


def test_lines_are_served_in_turn_and_each_in_the_order_of_its_coming():
    turns, done = Turns(), []
    for line, number in [("flood", 1), ("flood", 2), ("flood", 3), ("quiet", 1), ("third", 1), ("quiet", 2)]:
        turns.put(line, lambda line=line, number=number: done.append(f"{line} {number}"))
    while turns:
        turns.next()()
    assert done == ["flood 1", "quiet 1", "third 1", "flood 2", "quiet 2", "flood 3"]
    with pytest.raises(StopIteration):
        turns.next()


def test_a_connection_is_in_the_line_of_whom_it_was_last_and_strangers_share_one(monkeypatch):
    known = LinesOfConnections()
    assert known.of(b"a") == STRANGERS
    known.learn(b"a", "acme")
    known.learn(b"b", "globex")
    known.learn(b"a", "initech")
    assert [known.of(address) for address in (b"a", b"b", b"c")] == ["initech", "globex", STRANGERS]
    monkeypatch.setattr("casemate.transport.lane_turns._REMEMBERED", 2)
    known.learn(b"c", "acme")
    assert [known.of(address) for address in (b"a", b"b", b"c")] == [STRANGERS, STRANGERS, "acme"]


class Counted(Turns):
    """Turns that count, for each piece of work of the quiet tenant, how much was waiting and how much went before."""

    __slots__ = ("fair", "served", "waited", "waiting")

    def __init__(self, *, fair: bool) -> None:
        super().__init__()
        self.fair, self.served, self.waiting = fair, 0, 0
        self.waited: list[tuple[int, int]] = []

    def put(self, line: str, work: Any) -> None:
        came, ahead = self.served, self.waiting

        def counted() -> object:
            if line == "acme":
                self.waited.append((ahead, self.served - came - 1))
            return work()

        self.waiting += 1
        super().put(line if self.fair else "one for all", counted)

    def next(self) -> Any:
        self.served += 1
        self.waiting -= 1
        return super().next()


@pytest.mark.parametrize("fair", [True, False])
def test_whoever_floods_another_tenants_call_waits_for_one_turn_of_the_flood(leaf, monkeypatch, fair):
    """By count, with its twin: in one line for all, the same call waits for all that came before it."""
    counted = Counted(fair=fair)
    monkeypatch.setattr(lane, "Turns", lambda: counted)

    def echo(raw: bytes, _context: Any) -> bytes:
        return raw

    handlers = {"Open": grpc.unary_unary_rpc_method_handler(echo)}
    service = RegisteredService("test.Echo", handlers, {"Open": lambda _caller, _message, _context: echo})
    trainer, theirs = leaf("client", tenant="acme", name="trainer"), leaf("client", tenant="globex", name="flood")
    world = World()
    world.publish(grants=(grant(),))
    running = serve("sync", world, leaf("service", service="datasets"), services=[service])
    with running as served, served.channel(theirs) as flood, served.channel(trainer) as quiet:
        token, own = bearer(world.token(theirs, tenant="globex")), bearer(world.token(trainer))
        invoke, ask, over = flood.unary_unary("/test.Echo/Open"), quiet.unary_unary("/test.Echo/Open"), []

        def go_on(_ended: Any = None) -> None:
            if not over:
                invoke.future(b"x", metadata=token, timeout=LIMIT_S).add_done_callback(go_on)

        for _ in range(FLOOD):
            go_on()
        ends = time.monotonic() + LIMIT_S
        for number in itertools.count():
            assert time.monotonic() < ends, counted.waited
            assert ask(b"%d" % number, metadata=own, timeout=LIMIT_S) == b"%d" % number
            pressed = [before for ahead, before in counted.waited if ahead >= ENOUGH]
            if len(pressed) >= 6:
                break
        over.append(True)
    # One of the flood, and one of the line of strangers, in which its first calls are.
    assert max(before for _, before in counted.waited) <= 2 if fair else max(pressed) >= ENOUGH


def pressed(waited_s: float, lines: tuple[str, ...]) -> list[int]:
    """The limits of a second in which the serving thread waits that long each time, and these call."""
    pressure, limits = Pressure(16), []
    for number in range(1_000):
        now = number / 1_000
        pressure.seen(lines[number % len(lines)], now)
        limits.append(pressure.waited(waited_s, now))
    return limits


def test_threads_of_one_tenant_become_few_while_they_hold_up_another_and_then_only():
    assert pressed(0.002, ("flood", "quiet"))[-1] == 2
    assert set(pressed(2e-6, ("flood", "quiet"))) == {16}  # they wait for something else than the interpreter
    assert set(pressed(0.002, ("flood",))) == {16}  # nobody else has called since


def test_threads_are_given_back_when_the_interpreter_is_free_or_nobody_else_calls():
    pressure = Pressure(16)
    pressure.limit = 2
    for line in ("flood", "quiet"):
        pressure.seen(line, 0.0)
    assert [pressure.waited(2e-6, number / 50) for number in range(4)] == [3, 4, 5, 6]
    assert pressure.waited(0.5, 2.0) == 16  # one tenant alone holds up itself
    pressure.limit = 2
    assert pressure.idle() == 16
