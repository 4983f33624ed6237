"""Unary calls on the lane: a caller sees what it would see grpcio's own way, and threads are taken as is said."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
from casemate.gate.adapters.calls import REQUEST_ID_KEY
from casemate.transport import lane_call
from casemate.transport.registry import LATER, RegisteredService
from casemate.transport.status import from_rpc_error
from tests.gate.served import LIMIT_S, PARSED, bearer, serve
from tests.gate.world import World

RAW = b"as it came"


def plainly(raw: bytes, _context: Any) -> bytes:
    return raw


def with_metadata(raw: bytes, context: Any) -> bytes:
    context.send_initial_metadata((("begun", "early"),))
    context.set_trailing_metadata((("ended", "late"), ("ended-bin", b"\x00\xff")))
    with pytest.raises(ValueError, match="no longer allowed"):
        context.send_initial_metadata((("begun", "twice"),))
    return raw


def with_a_code(raw: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.OUT_OF_RANGE)
    context.set_details("beyond")
    return raw


def with_an_unknown_code(raw: bytes, context: Any) -> bytes:
    context.set_code(4711)
    return raw


def aborting(_raw: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("ended", "late"),))
    return context.abort(grpc.StatusCode.FAILED_PRECONDITION, "own words")


def aborting_with_ok(_raw: bytes, context: Any) -> bytes:
    return context.abort(grpc.StatusCode.OK, "not at all")


def raising(_raw: bytes, _context: Any) -> bytes:
    raise ValueError("a secret")


def compressed(raw: bytes, context: Any) -> bytes:
    context.set_compression(grpc.Compression.Gzip)
    return raw * 100


def uncompressed(raw: bytes, context: Any) -> bytes:
    context.set_compression(grpc.Compression.Gzip)
    context.disable_next_message_compression()
    return raw * 100


def telling(_raw: bytes, context: Any) -> bytes:
    names = sorted(key for key, _ in context.invocation_metadata() if key not in ("authorization", "user-agent"))
    told = (
        context.is_active(),
        0 < context.time_remaining() <= LIMIT_S,
        context.peer().split(":")[0],
        context.peer_identity_key(),
        list(context.peer_identities()),
        sorted(context.auth_context()),
        context.code(),
        names,
    )
    return repr(told).encode()


HANDLERS = (
    *(plainly, with_metadata, with_a_code, with_an_unknown_code, aborting, aborting_with_ok, raising),
    *(compressed, uncompressed, telling),
)


def service_of(handler: Any, at_once: Any = None) -> RegisteredService:
    methods = {"Open": grpc.unary_unary_rpc_method_handler(handler)}
    return RegisteredService("test.Echo", methods, {"Open": at_once} if at_once is not None else {})


def beside_one_served_at_once(handler: Any) -> RegisteredService:
    handlers = {name: grpc.unary_unary_rpc_method_handler(handler) for name in ("Open", "Other")}
    return RegisteredService("test.Echo", handlers, {"Other": lambda _caller, _message, _context: plainly})


def outcome(served: Any, leaf: Any, raw: bytes = RAW) -> tuple[Any, ...]:
    trainer = leaf("client", tenant="acme", name="trainer")
    with served.channel(trainer) as channel:
        call = channel.unary_unary("/test.Echo/Open").future(
            raw, metadata=bearer(served.world.token(trainer)), timeout=LIMIT_S
        )
        trailing = {key: value for key, value in call.trailing_metadata() if key != "grpc-status-details-bin"}
        # grpcio's own way loses it when a handler aborts with metadata of its own.
        assert len(trailing.pop(REQUEST_ID_KEY, "")) == 16 or not served.lane
        reply = None if call.code() is not grpc.StatusCode.OK else call.result()
        return call.code(), call.details(), reply, tuple(call.initial_metadata()), trailing


def by_name(raw: bytes, context: Any) -> bytes:
    name = raw.decode()
    [handler] = [each for each in HANDLERS if each.__name__ == name]
    return handler(raw, context)


def by_somebody_else(raw: bytes, context: Any) -> object:
    """Has the call ended by a thread that knows nothing of it, after this one has left it."""
    left = threading.Event()

    def conclude() -> None:
        assert left.wait(LIMIT_S)
        context.conclude(lambda: by_name(raw, context))

    context.in_thread(conclude)
    left.set()
    return LATER


@pytest.fixture(scope="module")
def ways(leaf):
    """Servers of the same handlers: grpcio's way, on the lane with a thread for each call, without, and later."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serve("sync", World(), leaf("service", service="datasets"), services=[service], lane=lane)
            )
            for lane, service in (
                (False, service_of(by_name)),
                (True, service_of(by_name)),
                (True, service_of(by_name, at_once=lambda _caller, _message, _context: by_name)),
                (True, service_of(by_name, at_once=lambda _caller, _message, _context: by_somebody_else)),
            )
        ]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
def test_a_caller_sees_of_a_handler_the_same_on_the_lane_as_grpcios_way(ways, leaf, handler):
    grpcios, with_threads, without, later = (outcome(served, leaf, handler.__name__.encode()) for served in ways)
    assert grpcios == with_threads == without == later


@pytest.mark.parametrize("lane", [True, False])
def test_either_way_a_token_serves_its_owner_and_no_thief(leaf, lane):
    trainer, thief = leaf("client", tenant="acme", name="trainer"), leaf("client", tenant="acme", name="thief")
    with serve("sync", World(), leaf("service", service="datasets"), lane=lane) as served:
        token = served.world.token(trainer)
        with served.channel(trainer) as channel, served.channel(thief) as theirs:
            assert served.call(channel, token=token).version == PARSED
            with pytest.raises(grpc.RpcError) as refused:
                served.call(theirs, token=token)
        assert from_rpc_error(refused.value).reason is Reason.CERTIFICATE_MISMATCH
        assert served.echo.entered == [PARSED]


def test_metadata_that_cannot_be_sent_ends_the_call_all_the_same(leaf):
    def impossible(raw: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("Not A Key", "\n"),))
        return raw

    with serve("sync", World(), leaf("service", service="datasets"), services=[service_of(impossible)]) as served:
        trainer = leaf("client", tenant="acme", name="trainer")
        with served.channel(trainer) as channel, pytest.raises(grpc.RpcError) as ended:
            channel.unary_unary("/test.Echo/Open")(RAW, metadata=bearer(served.world.token(trainer)), timeout=LIMIT_S)
        assert ended.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(("at_once", "thread"), [(True, "lane"), (False, "call_1")])
def test_what_is_served_at_once_takes_no_thread_and_everything_else_does(leaf, at_once, thread):
    def named(_raw: bytes, _context: Any) -> bytes:
        return threading.current_thread().name.encode()

    service = service_of(named, lambda _caller, _message, _context: named if at_once else None)
    with serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served:
        assert outcome(served, leaf)[2] == thread.encode()


@pytest.mark.parametrize("raises", ["its handler", "what says if it is served at once", "its parser"])
@pytest.mark.parametrize("at_once", [True, False])
def test_whatever_a_call_raises_it_is_answered_and_the_next_one_is_served(leaf, at_once, raises):
    def ending(where: str) -> None:
        if bad and raises == where:
            raise SystemExit(3)  # as a panic of compiled code, it is no Exception

    def behavior(raw: bytes, _context: Any) -> bytes:
        ending("its handler")
        return raw

    def judging(_caller: Any, _message: bytes, _context: Any) -> Any:
        ending("what says if it is served at once")
        return behavior if at_once else None

    def parsing(raw: bytes) -> bytes:
        ending("its parser")
        return raw

    methods = {"Open": grpc.unary_unary_rpc_method_handler(behavior, parsing)}
    service = RegisteredService("test.Echo", methods, {"Open": judging})
    with serve("sync", World(), leaf("service", service="datasets"), services=[service], threads=1) as served:
        bad = True
        assert [outcome(served, leaf)[:2] for _ in range(2)] == [(grpc.StatusCode.INTERNAL, "internal error")] * 2
        bad = False
        assert outcome(served, leaf)[2] == RAW
        assert served.world.gate._quota.running == 0


def test_a_large_message_is_given_a_thread_whatever_its_method_says(leaf):
    def named(_raw: bytes, _context: Any) -> bytes:
        return threading.current_thread().name.encode()

    service = service_of(named, lambda _caller, _message, _context: named)
    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        invoke, token = channel.unary_unary("/test.Echo/Open"), bearer(served.world.token(trainer))
        assert invoke(bytes(16 * 1024), metadata=token, timeout=LIMIT_S) == b"lane"
        assert invoke(bytes(16 * 1024 + 1), metadata=token, timeout=LIMIT_S) == b"call_1"


def test_a_right_that_ended_while_a_call_waited_for_a_thread_keeps_its_handler_from_running(leaf):
    entered, go_on = [], threading.Event()

    def staying(raw: bytes, _context: Any) -> bytes:
        entered.append(raw)
        go_on.wait(LIMIT_S)
        return raw

    trainer = leaf("client", tenant="acme", name="trainer")
    world, service = World(), beside_one_served_at_once(staying)
    with (
        serve("sync", world, leaf("service", service="datasets"), services=[service], threads=1) as served,
        served.channel(trainer) as channel,
    ):
        invoke = channel.unary_unary("/test.Echo/Open")
        token = bearer(world.token(trainer, scope="datasets.read log.read"))
        first = invoke.future(b"first", metadata=token, timeout=LIMIT_S)
        while not entered:
            threading.Event().wait(0.001)
        second = invoke.future(b"second", metadata=token, timeout=LIMIT_S)
        # Served where it arrives, behind the second on one connection: so that one was admitted and waits by now.
        channel.unary_unary("/test.Echo/Other")(RAW, metadata=token, timeout=LIMIT_S)
        world.clock.advance(minutes=6)
        go_on.set()
        assert first.result() == b"first"  # its handler ran already
        assert second.code() is grpc.StatusCode.UNAUTHENTICATED
        assert entered == [b"first"]


def test_a_handler_is_told_that_its_peer_left_and_a_waiting_call_of_that_peer_never_begins(leaf):
    told, entered, go_on = threading.Event(), [], threading.Event()

    def staying(raw: bytes, context: Any) -> bytes:
        entered.append(raw)
        assert context.add_callback(told.set)
        go_on.wait(LIMIT_S)
        assert not context.is_active()
        assert not context.add_callback(told.clear)
        return raw

    service = beside_one_served_at_once(staying)
    trainer = leaf("client", tenant="acme", name="trainer")
    with serve("sync", World(), leaf("service", service="datasets"), services=[service], threads=1) as served:
        token = bearer(served.world.token(trainer, scope="datasets.read log.read"))
        with served.channel(trainer) as channel:
            invoke = channel.unary_unary("/test.Echo/Open")
            calls = [invoke.future(b"first", metadata=token, timeout=LIMIT_S)]
            while not entered:
                threading.Event().wait(0.001)
            calls.append(invoke.future(b"second", metadata=token, timeout=LIMIT_S))
            # Served where it arrives, behind the second on one connection: so that one waits for a thread by now.
            other = channel.unary_unary("/test.Echo/Other")
            other(RAW, metadata=token, timeout=LIMIT_S)
            for call in calls:
                call.cancel()
            other(RAW, metadata=token, timeout=LIMIT_S)  # behind both cancellations
            assert told.wait(LIMIT_S)
        go_on.set()
    assert entered == [b"first"]


def test_a_server_that_ends_lets_a_running_call_finish(leaf):
    began, go_on = threading.Event(), threading.Event()

    def staying(raw: bytes, _context: Any) -> bytes:
        began.set()
        go_on.wait(LIMIT_S)
        return raw

    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service_of(staying)]) as served,
        served.channel(trainer) as channel,
    ):
        call = channel.unary_unary("/test.Echo/Open").future(
            RAW, metadata=bearer(served.world.token(trainer)), timeout=LIMIT_S
        )
        assert began.wait(LIMIT_S)
        ending = threading.Thread(target=served.stop, args=(timedelta(seconds=LIMIT_S),))
        ending.start()
        go_on.set()
        assert call.result() == RAW
        ending.join(LIMIT_S)
        assert not ending.is_alive()


def test_a_release_of_grpcio_without_a_private_name_is_served_grpcios_way(leaf, monkeypatch):
    monkeypatch.setattr(lane_call, "AVAILABLE", False)

    def named(_raw: bytes, _context: Any) -> bytes:
        return threading.current_thread().name.encode()

    service = service_of(named, lambda _caller, _message, _context: named)
    with serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served:
        assert outcome(served, leaf)[2] == b"call_1"


@pytest.mark.parametrize("who", ["owner", "thief", "stranger"])
def test_the_message_of_a_call_is_asked_for_once_its_caller_is_proven_and_never_before(leaf, monkeypatch, who):
    asked, ask = [], lane_call.LaneCall.ask

    def asking(call: Any) -> None:
        asked.append(call._caller.client_id)  # set by the proof of its peer
        ask(call)

    monkeypatch.setattr(lane_call.LaneCall, "ask", asking)
    trainer, thief = leaf("client", tenant="acme", name="trainer"), leaf("client", tenant="acme", name="thief")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service_of(plainly)]) as served,
        served.channel(thief if who == "thief" else trainer) as channel,
    ):
        metadata = bearer("" if who == "stranger" else served.world.token(trainer))
        call = channel.unary_unary("/test.Echo/Open").future(RAW, metadata=metadata, timeout=LIMIT_S)
        assert call.code().name == ("OK" if who == "owner" else "UNAUTHENTICATED")
    assert asked == (["acme-trainer"] if who == "owner" else [])


@pytest.mark.parametrize("dataset", ["digits", "of-others"])
def test_what_may_be_served_at_once_needs_its_grant_like_everything_else(leaf, dataset):
    entered = []

    def behavior(request: GetVersionRequest, _context: Any) -> bytes:
        entered.append(request.dataset)
        return b""

    def judging(_caller: Any, request: GetVersionRequest, _context: Any) -> Any:
        entered.append(f"asked of {request.dataset}")
        return behavior

    handler = grpc.unary_unary_rpc_method_handler(behavior, GetVersionRequest.FromString)
    service = RegisteredService("test.Echo", {"Unary": handler}, {"Unary": judging})
    trainer = leaf("client", tenant="acme", name="trainer")
    with (
        serve("sync", World(), leaf("service", service="datasets"), services=[service]) as served,
        served.channel(trainer) as channel,
    ):
        raw = GetVersionRequest(dataset=dataset, version=PARSED).SerializeToString()
        metadata = bearer(served.world.token(trainer))
        call = channel.unary_unary("/test.Echo/Unary").future(raw, metadata=metadata, timeout=LIMIT_S)
        assert call.code().name == ("OK" if dataset == "digits" else "NOT_FOUND")
        assert served.world.audit.denials == ([] if dataset == "digits" else ["GRANT_MISSING"])
    assert entered == (["asked of digits", "digits"] if dataset == "digits" else [])
