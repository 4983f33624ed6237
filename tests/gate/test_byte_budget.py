"""Requests that wait for a thread or a turn hold so many bytes and no more; the rest waits with its peers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from casemate.gate.adapters import bodies
from casemate.transport import byte_budget, server
from casemate.transport.byte_budget import ByteBudget, default_budget
from casemate.transport.registry import RegisteredService
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.test_lines import until
from tests.gate.world import World, grant

MIB = 1024 * 1024


class Asked:
    """A budget of so many requests of ten bytes, and who was asked for one, in order."""

    def __init__(self, requests: int) -> None:
        self.budget = ByteBudget(total=10 * requests, largest=10)
        self.asked: list[str] = []

    def ask(self, tenant: str, caller: str | None = None) -> byte_budget.Held:
        name = caller or tenant
        return self.budget.ask(tenant=tenant, caller=name, go=lambda: self.asked.append(name))


def test_what_a_small_request_did_not_need_and_what_no_longer_waits_is_given_to_the_next():
    room = Asked(2)
    first, _, third = (room.ask(name) for name in ("a", "b", "c"))
    assert (room.asked, room.budget.held, room.budget.waiting) == (["a", "b"], 20, 1)
    first.arrived(1)
    assert room.budget.waiting == 1  # nine bytes are no room for ten
    first.end()
    assert (room.asked, room.budget.held) == (["a", "b", "c"], 20)
    first.end()
    third.end()
    assert room.budget.held == 10


def test_no_caller_has_more_than_half_and_no_tenant_the_last_eighth():
    room = Asked(16)
    for caller in ("x", "y"):
        for _ in range(20):
            room.ask("flood", caller)
    assert (room.asked.count("x"), room.asked.count("y")) == (8, 6)
    room.ask("quiet")
    assert room.asked[-1] == "quiet"
    assert room.budget.waiting == 26


def test_lines_are_served_in_turn_when_there_is_room_again():
    room = Asked(1)
    first = room.ask("first")
    waiting = [room.ask(name) for name in ("flood", "flood", "quiet")]
    first.end()
    for held in (waiting[0], waiting[2]):
        held.end()
    assert room.asked == ["first", "flood", "quiet", "flood"]


@pytest.mark.parametrize("leaves", [True, False])
def test_who_leaves_its_line_is_never_asked_and_who_stays_is(leaves):
    room = Asked(1)
    first, second = room.ask("first"), room.ask("second")
    assert not first.leave()
    if leaves:
        assert second.leave()
        assert not second.leave()
    first.end()
    assert room.asked == (["first"] if leaves else ["first", "second"])
    assert room.budget.held == (0 if leaves else 10)


def test_thousands_whose_requests_end_as_soon_as_they_are_asked_for_end_one_after_the_other():
    """Each makes room for the next: one inside of the other, they would outgrow the stack."""
    budget = ByteBudget(total=10, largest=10)
    first, calls = budget.ask(tenant="t", caller="c", go=lambda: None), []
    for number in range(3_000):
        calls.append(budget.ask(tenant="t", caller="c", go=lambda number=number: calls[number].end()))
    first.end()
    assert (budget.held, budget.waiting) == (0, 0)


def test_many_threads_leave_nothing_behind():
    budget, entered = ByteBudget(total=100, largest=10), []

    def work(name: str) -> None:
        for _ in range(200):
            asked = threading.Event()
            held = budget.ask(tenant=name, caller=name, go=asked.set)
            assert asked.wait(LIMIT_S)
            entered.append(budget.held)
            held.arrived(3)
            held.end()

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd" * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert (budget.held, budget.waiting, len(entered)) == (0, 0, 4_000)
    assert max(entered) <= 100


@pytest.mark.parametrize(
    ("largest", "memory", "budget"),
    [(4, 64 * 1024, 4096), (4, 4096, 1024), (64, 4096, 1024), (64, 1024, 512), (4, 128, 32)],
)
def test_the_budget_follows_from_the_memory_and_holds_eight_requests_whatever_that_is(largest, memory, budget):
    assert default_budget(largest * MIB, memory=memory * MIB) == budget * MIB
    assert default_budget(MIB) >= 8 * MIB


class Staying:
    """Handlers that stay, and one that does not."""

    def __init__(self) -> None:
        self.entered: list[bytes] = []
        self.leave = threading.Event()

    def stay(self, raw: bytes, _context: Any) -> bytes:
        self.entered.append(raw[:1])
        if raw[:1] == b"s":
            self.leave.wait(LIMIT_S)
        return raw[:1]


@contextmanager
def serving(leaf: Any, monkeypatch: pytest.MonkeyPatch, requests: int) -> Iterator[tuple[Any, Staying, ByteBudget]]:
    budget, staying, world = ByteBudget(total=requests * MIB, largest=MIB), Staying(), World()
    monkeypatch.setattr(server, "budget_of", lambda _largest: budget)
    service = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(staying.stay)})
    world.publish(grants=(grant(),))
    with serve("sync", world, leaf("service", service="datasets"), services=[service], threads=2) as served:
        try:
            yield served, staying, budget
        finally:
            staying.leave.set()


@pytest.mark.parametrize("requests", [4, 64])
def test_a_tenants_requests_that_wait_for_a_thread_hold_their_share_and_the_rest_is_not_asked_for(
    leaf, monkeypatch, requests
):
    """One of two threads is its own, so twenty of half a mebibyte wait; the twin has room for all of them."""
    theirs, trainer = leaf("client", tenant="globex", name="flood"), leaf("client", tenant="acme", name="trainer")
    with (
        serving(leaf, monkeypatch, requests) as (served, staying, budget),
        served.channel(theirs) as flood,
        served.channel(trainer) as quiet,
    ):
        token = bearer(served.world.token(theirs, tenant="globex"))
        invoke = flood.unary_unary("/test.Echo/Open")
        calls = [invoke.future(b"s" * (MIB // 2), metadata=token, timeout=LIMIT_S) for _ in range(21)]
        until(lambda: len(staying.entered) == 1)
        # Half of four mebibytes is one caller's: three wait here, of which the last had reserved a whole one.
        held, waiting = (1.5 * MIB, 17) if requests == 4 else (10 * MIB, 0)
        until(lambda: (budget.held, budget.waiting) == (held, waiting))
        ask = quiet.unary_unary("/test.Echo/Open")
        assert ask(b"x", metadata=bearer(served.world.token(trainer)), timeout=LIMIT_S) == b"x"
        if waiting:
            for call in calls[-2:]:
                call.cancel()  # they came last, and are not asked for
            until(lambda: budget.waiting == waiting - 2)
        staying.leave.set()
        assert {call.result() for call in calls[: -2 if waiting else None]} == {b"s"}
        until(lambda: (budget.held, budget.waiting) == (0, 0))
        assert served.world.gate._quota.running == 0
    assert len(staying.entered) == (20 if waiting else 22)  # who left was never served


def test_a_server_ends_although_calls_wait_for_room(leaf, monkeypatch):
    theirs = leaf("client", tenant="globex", name="flood")
    with serving(leaf, monkeypatch, 4) as (served, staying, budget), served.channel(theirs) as flood:
        token = bearer(served.world.token(theirs, tenant="globex"))
        invoke = flood.unary_unary("/test.Echo/Open")
        calls = [invoke.future(b"s" * (MIB // 2), metadata=token, timeout=LIMIT_S) for _ in range(10)]
        until(lambda: budget.waiting == 6)
        gate, ended = served.world.gate, []
        finish = gate.finish
        gate.finish = lambda admission, code, **more: (finish(admission, code, **more), ended.append(code))
        ending = threading.Thread(target=served.stop, args=(server.timedelta(milliseconds=100),))
        ending.start()
        until(lambda: budget.waiting == 0)
        staying.leave.set()
        ending.join(LIMIT_S)
        assert not ending.is_alive()
        assert all(call.exception() is not None for call in calls)
        until(lambda: sorted(ended) == ["CANCELLED"] * 9 + ["OK"])  # those too whose request nobody asked for


@pytest.mark.parametrize("suspect", [True, False])
def test_a_call_that_is_refused_when_its_request_would_be_asked_for_gives_its_room_back(leaf, monkeypatch, suspect):
    """Half of four is one caller's: were two kept, the third would wait."""
    monkeypatch.setattr(bodies, "LATE_S", 0.6)
    monkeypatch.setattr(bodies, "LATE_CALLS", 0 if suspect else 4)
    trainer, go_on = leaf("client", tenant="acme", name="trainer"), threading.Event()

    def late() -> Iterator[bytes]:
        go_on.wait(LIMIT_S)
        yield b"late"

    with serving(leaf, monkeypatch, 4) as (served, _staying, budget), served.channel(trainer) as channel:
        token = bearer(served.world.token(trainer))
        first = channel.stream_unary("/test.Echo/Open").future(late(), metadata=token, timeout=LIMIT_S)
        if not suspect:
            go_on.set()
        assert first.code() is (grpc.StatusCode.DEADLINE_EXCEEDED if suspect else grpc.StatusCode.OK)
        ask = channel.unary_unary("/test.Echo/Open")
        calls = [ask.future(b"x", metadata=token, timeout=LIMIT_S) for _ in range(6)]
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if suspect else grpc.StatusCode.OK
        assert [call.code() for call in calls] == [code] * 6
        until(lambda: (budget.held, budget.waiting) == (0, 0))
        go_on.set()


@pytest.mark.parametrize("requests", [4, 64])
def test_likewise_of_requests_that_wait_for_their_turn_on_grpc_aio(leaf, requests):
    budget, world, leave, entered = ByteBudget(total=requests * MIB, largest=MIB), World(), asyncio.Event(), []

    async def stay(raw: bytes, _context: Any) -> bytes:
        entered.append(raw[:1])
        await leave.wait()
        return raw[:1]

    service = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(stay)})
    world.publish(grants=(grant(),))
    theirs, house = leaf("client", tenant="globex", name="flood"), leaf("service", service="datasets")
    with (
        serve("aio", world, house, services=[service], at_once=2, budget=budget) as served,
        served.channel(theirs) as flood,
    ):
        token = bearer(world.token(theirs, tenant="globex"))
        invoke = flood.unary_unary("/test.Echo/Open")
        calls = [invoke.future(b"s" * (MIB // 2), metadata=token, timeout=LIMIT_S) for _ in range(21)]
        held, waiting = (1.5 * MIB, 17) if requests == 4 else (10 * MIB, 0)
        until(lambda: (budget.held, budget.waiting, len(entered)) == (held, waiting, 1))
        if waiting:
            for call in calls[-2:]:
                call.cancel()
            until(lambda: budget.waiting == waiting - 2)
        leave._loop.call_soon_threadsafe(leave.set)
        assert {call.result() for call in calls[: -2 if waiting else None]} == {b"s"}
        until(lambda: (budget.held, budget.waiting) == (0, 0))
    assert len(entered) == (19 if waiting else 21)


@pytest.mark.parametrize("raw", [b"\xff\xff", b""])
def test_a_request_on_grpc_aio_that_is_no_message_keeps_no_room(leaf, raw):
    budget, world = ByteBudget(total=4 * MIB, largest=MIB), World()

    async def answer(_message: Any, _context: Any) -> bytes:
        return b"x"

    def parse(given: bytes) -> bytes:
        if given:
            raise ValueError("none")
        return given

    service = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(answer, parse)})
    trainer = leaf("client", tenant="acme", name="trainer")
    serving_it = serve("aio", world, leaf("service", service="datasets"), services=[service], budget=budget)
    with serving_it as served, served.channel(trainer) as channel:
        token, ask = bearer(world.token(trainer)), channel.unary_unary("/test.Echo/Open")
        codes = {ask.future(raw, metadata=token, timeout=LIMIT_S).code() for _ in range(6)}
        assert codes == {grpc.StatusCode.INVALID_ARGUMENT if raw else grpc.StatusCode.OK}
        until(lambda: (budget.held, budget.waiting) == (0, 0))
