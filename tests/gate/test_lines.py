"""Whose line a call of the synchronous server waits in, and whose places it takes, with a token and without."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import grpc
import pytest

from casemate.errors import Reason
from casemate.gate.adapters import calls
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.transport.registry import RegisteredService
from tests.gate.adapter_world import UNAUTHENTICATED, judged, kind, mallory, service_leaf, trainer
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import SetClock, World, bearer, grant

__all__ = ["kind", "mallory", "service_leaf", "trainer"]  # fixtures

STAY = b"stay"


class Stay:
    """A handler that stays until it is let go, for those that ask for it; answers the others at once."""

    def __init__(self) -> None:
        self.leave = threading.Event()
        self.entered: list[bytes] = []

    def __call__(self, request, _context):
        self.entered.append(request)
        if request.startswith(STAY):
            self.leave.wait(6 * LIMIT_S)
        return request

    def service(self):
        handler = grpc.unary_unary_rpc_method_handler(self)
        return RegisteredService("test.Echo", {"Open": handler, "Peer": handler, "Services": handler})


def until(happened):
    for _ in range(int(LIMIT_S * 100)):
        if happened():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


def ask(channel, method, token=None):
    """How one calls a method, with a token or without."""
    invoke = channel.unary_unary(f"/test.Echo/{method}")

    def send(request, *, wait=True):
        metadata = bearer(token) if token is not None else None
        call = invoke.future(request, metadata=metadata, timeout=3 * LIMIT_S)
        return call.result() if wait else call

    return send


def taking_a_thread(served, channels, leaf, tenant):
    theirs = channels.enter_context(served.channel(leaf("client", tenant=tenant, name="busy")))
    return ask(theirs, "Peer")(STAY, wait=False)


@pytest.fixture
def stay():
    stay = Stay()
    yield stay
    stay.leave.set()


@pytest.mark.parametrize("flooding", ["Peer", "Open"])
def test_a_flood_of_one_tenant_with_tokens_or_without_leaves_threads_to_both_kinds_of_another(
    service_leaf, trainer, leaf, stay, flooding
):
    """By count: of eight threads forty calls that stay hold seven, whichever kind they are of."""
    theirs, world = leaf("client", tenant="globex", name="flood"), World()
    world.publish(grants=(grant(),))
    running = serve("sync", world, service_leaf, services=[stay.service()], threads=8)
    with running as served, served.channel(theirs) as flood, served.channel(trainer) as quiet:
        token = world.token(theirs, tenant="globex")
        stays = ask(flood, flooding, token if flooding == "Open" else None)
        calls = [stays(STAY, wait=False) for _ in range(40)]
        until(lambda: len(stay.entered) == 7)
        without, with_token = ask(quiet, "Peer"), ask(quiet, "Open", world.token(trainer))
        for _ in range(10):
            assert [without(b"x"), with_token(b"y")] == [b"x", b"y"]
        assert stay.entered.count(STAY) == 7
        # Both kinds of the flooding tenant are one line: the other kind gets it no thread more.
        other = ask(flood, "Peer" if flooding == "Open" else "Open", None if flooding == "Open" else token)
        late = other(STAY + b" too", wait=False)
        assert without(b"x") == b"x"
        assert STAY + b" too" not in stay.entered
        stay.leave.set()
        assert {call.result() for call in [*calls, late]} == {STAY, STAY + b" too"}


def test_where_grpcio_does_not_show_the_connection_in_line_the_calls_are_served_and_share_one(
    service_leaf, trainer, mallory, stay, monkeypatch
):
    monkeypatch.setattr(calls, "_known_of", None)
    world = World()
    running = serve("sync", world, service_leaf, services=[stay.service()], threads=4)
    with running as served, served.channel(trainer) as channel, served.channel(mallory) as thief:
        token = world.token(trainer)
        assert [ask(channel, "Peer")(b"x"), ask(channel, "Open", token)(b"y")] == [b"x", b"y"]
        with pytest.raises(grpc.RpcError) as refused:
            ask(thief, "Open", token)(b"z")
        assert judged(refused.value) == (UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)


def test_stolen_tokens_whose_calls_wait_for_a_thread_take_no_place_of_their_owner(
    service_leaf, trainer, mallory, leaf, stay
):
    """All threads are taken, so the stolen calls wait; the owner, who has one place, is not refused for them."""
    world = World(quota=LocalQuota(clock=SetClock(), shares=Shares(caller_concurrency=1)))
    running = serve("sync", world, service_leaf, services=[stay.service()], threads=2)
    with running as served, ExitStack() as channels:
        busy = [taking_a_thread(served, channels, leaf, tenant) for tenant in ("globex", "initech")]
        until(lambda: len(stay.entered) == len(busy))
        thief, owner = (channels.enter_context(served.channel(holder)) for holder in (mallory, trainer))
        token = world.token(trainer)
        stolen = [ask(thief, "Open", token)(b"stolen", wait=False) for _ in range(20)]
        until(lambda: len(world.audit.denials) == 20)  # refused, although nobody has been told yet
        assert world.gate._quota.running == 2
        good = ask(owner, "Open", token)(b"good", wait=False)
        until(lambda: world.gate._quota.running == 3)
        stay.leave.set()
        assert good.result() == b"good"
        for call in stolen:
            assert judged(call.exception()) == (UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)
        assert b"stolen" not in stay.entered


def test_stolen_tokens_whose_bodies_do_not_come_take_no_place_of_their_owner(kind, service_leaf, trainer, mallory):
    world = World(quota=LocalQuota(clock=SetClock(), shares=Shares(caller_concurrency=1)))
    never = threading.Event()

    def nothing():
        never.wait(3 * LIMIT_S)
        yield b""

    with serve(kind, world, service_leaf) as served, ExitStack() as channels:
        thief, owner = (channels.enter_context(served.channel(holder)) for holder in (mallory, trainer))
        token = world.token(trainer)
        invoke = thief.stream_unary("/test.Echo/Unary")
        stolen = [invoke.future(nothing(), metadata=bearer(token), timeout=3 * LIMIT_S) for _ in range(30)]
        for _ in range(10):
            assert served.call(owner, token=token)
            until(lambda: world.gate._quota.running == 0)
        for call in stolen:
            assert judged(call.exception()) == (UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)
        never.set()
        assert served.call(owner, token=token)


def test_a_call_that_was_proven_in_line_is_judged_again_when_its_turn_comes(service_leaf, trainer, leaf, stay):
    world = World()
    running = serve("sync", world, service_leaf, services=[stay.service()], threads=2)
    with running as served, ExitStack() as channels:
        busy = [taking_a_thread(served, channels, leaf, tenant) for tenant in ("globex", "initech")]
        until(lambda: len(stay.entered) == len(busy))
        owner = channels.enter_context(served.channel(trainer))
        revoked, good = (
            ask(owner, "Open", world.token(trainer, jti=name.decode()))(name, wait=False)
            for name in (b"revoked", b"good")
        )
        until(lambda: world.gate._quota.running == 4)
        world.revoke("token", "revoked")
        stay.leave.set()
        assert good.result() == b"good"
        assert judged(revoked.exception()) == (UNAUTHENTICATED, Reason.TOKEN_REVOKED)
        assert b"revoked" not in stay.entered
