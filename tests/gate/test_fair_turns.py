"""One tenant's flood on `grpc.aio` leaves the others their turn."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import grpc
import pytest

from casemate.gate.adapters.caller_context import share_of
from casemate.gate.adapters.fair_turns import FairTurns
from casemate.gate.core.caller import Caller
from casemate.transport.registry import RegisteredService
from tests.gate.adapter_world import service_leaf, trainer
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import DOMAIN, World, bearer, grant

__all__ = ["service_leaf", "trainer"]  # fixtures


class Room:
    """Places, and in which order they were had."""

    def __init__(self, places):
        self.turns = FairTurns(places)
        self.had = []

    def ask(self, share):
        async def wait():
            await self.turns.take(share)
            self.had.append(share)

        return asyncio.ensure_future(wait())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_share_has_every_place_and_the_lines_are_served_in_turn():
    room = Room(8)
    asked = [room.ask("flood") for _ in range(20)] + [room.ask("quiet"), room.ask("third")]
    await settle()
    assert room.had == ["flood"] * 7 + ["quiet"]
    for _ in range(3):
        room.turns.give("flood")
        await settle()
    assert room.had[8:] == ["third", "flood", "flood"]
    for task in asked:
        task.cancel()


async def test_who_is_cancelled_in_the_line_takes_no_place_and_one_whose_turn_has_come_gives_it_back():
    room = Room(2)
    await asyncio.gather(room.ask("a"), room.ask("b"))
    waiting, next_one = room.ask("a"), room.ask("b")
    await settle()
    waiting.cancel()
    await settle()
    room.turns.give("a")
    room.turns.give("b")
    await settle()
    assert next_one.done()
    late = room.ask("b")  # one each is the most
    await settle()
    room.turns.give("b")
    late.cancel()  # in the same moment
    with pytest.raises(asyncio.CancelledError):
        await late
    await settle()
    assert (room.turns._taken, room.turns._running, room.turns._lines) == (0, {}, {})


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_place_that_is_given_in_the_moment_in_which_the_next_in_line_leaves_goes_to_the_one_after(leaves):
    """The cancelled call has not been resumed yet: to give it the place raised in the giver, and lost the place."""
    room = Room(1)
    await room.ask("a")
    first, second = room.ask("b"), room.ask("c")
    await settle()
    if leaves:
        first.cancel()
    room.turns.give("a")
    await settle()
    assert room.had == ["a", "c" if leaves else "b"]
    room.turns.give(room.had[-1])
    await settle()
    if not leaves:
        room.turns.give("c")
    assert second.done()
    assert (room.turns._taken, room.turns._running, room.turns._lines) == (0, {}, {})


def test_all_certificates_of_a_tenant_have_one_share_and_each_service_its_own():
    def caller(path, tenant=None):
        return Caller(
            tenant=tenant,
            client_id=None,
            subject=None,
            spiffe_id=f"spiffe://{DOMAIN}/{path}",
            scopes=frozenset(),
            token_id=None,
            certificate_thumbprint="x" * 43,
            expires_at=datetime.max.replace(tzinfo=UTC),
            request_id="r",
        )

    assert {share_of(caller(f"t/acme/{name}")) for name in ("a", "b", "a/c")} == {"acme"}  # as with a token
    assert share_of(caller("t/acme/a", tenant="acme")) == "acme"
    assert share_of(caller("svc/inference")) == "svc/inference"


async def test_a_single_place_goes_from_one_to_the_next():
    room = Room(1)
    asked = [room.ask(name) for name in ("a", "a", "b", "a")]
    for _ in range(3):
        await settle()
        room.turns.give(room.had[-1])
    await settle()
    assert room.had == ["a", "a", "b", "a"]
    assert all(task.done() for task in asked)


def test_calls_that_stay_leave_places_to_another_tenant(service_leaf, trainer, leaf):
    """By count: of eight places forty calls that stay hold seven, and every call of the other tenant is served."""
    theirs, entered, leave = leaf("client", tenant="globex", name="flood"), [], asyncio.Event()

    async def stay(request, _context):
        if request == b"stay":
            entered.append(request)
            await leave.wait()
        return request

    service = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(stay)})
    world = World()
    world.publish(grants=(grant(),))
    running = serve("aio", world, service_leaf, services=[service], at_once=8)
    with running as served, served.channel(theirs) as flood, served.channel(trainer) as quiet:
        invoke = flood.unary_unary("/test.Echo/Open")
        token = bearer(world.token(theirs, tenant="globex"))
        calls = [invoke.future(b"stay", metadata=token, timeout=6 * LIMIT_S) for _ in range(40)]
        own = bearer(world.token(trainer))
        ask = quiet.unary_unary("/test.Echo/Open")
        assert [ask(b"x", metadata=own, timeout=LIMIT_S) for _ in range(20)] == [b"x"] * 20
        assert len(entered) <= 7
        for call in calls[:10]:
            call.cancel()  # some that run, some in the line
        assert ask(b"x", metadata=own, timeout=LIMIT_S) == b"x"
        leave._loop.call_soon_threadsafe(leave.set)
        assert {call.result() for call in calls[10:]} == {b"stay"}
        assert ask(b"x", metadata=own, timeout=LIMIT_S) == b"x"
