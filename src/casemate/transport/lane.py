"""Unary calls of the synchronous server, taken where their events arrive.

grpcio's own way wakes a thread of the pool for each call, which asks for the message, waits
for the serving thread to bring it, and is woken again: three changes of the interpreter's owner
before a handler begins. Here the serving thread judges the headers, asks for the message, and
gives a thread to a call only once its message is there, or none at all where the handler is
known to be short. Streams, and whatever is not registered, go grpcio's way as before, by the
same completion queue. `docs/adr/0007` has the figures, and what is private in it.

If this fails: calls are lost, or a server does not end. What a call may do is decided by
whoever makes it: see `lane_call`.
"""

from __future__ import annotations

import math
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import grpc

from casemate.transport import lane_call
from casemate.transport.lane_pressure import Pressure
from casemate.transport.lane_turns import LinesOfConnections, Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from casemate.transport.byte_budget import ByteBudget
    from casemate.transport.fair_pool import FairThreadPool
    from casemate.transport.lane_call import LaneCall
    from casemate.transport.registry import AtOnce, RegisteredService

    MakeCall: TypeAlias = "Callable[[Any, Any], LaneCall]"
    """A call of one method, from the server's state and the event that brought its headers."""

_LOOK_S: Final = 1.0  # grpcio's: how often a server that nobody holds any more is noticed
_AT_ONCE: Final = 0.0
"""A moment that has passed: what is there is given, and nothing is waited for."""
_MOST_TAKEN: Final = 16
"""Events that are put into lines before the next turn, should they never end."""
_REST_S: Final = 50e-6
"""Seconds that the loop waited for an event: there was nothing to do."""
_LATELY_S: Final = 0.001
_TURNS_S: Final = 60e-6
"""Seconds of turns before the next look: it may wait for threads of grpcio."""
_SERVER: Any = None
try:
    from grpc import _server

    _SERVER = _server
except ImportError:
    pass
_OF_SERVER: Final = (
    *("_process_event_and_continue", "_begin_shutdown_once", "_stop_serving", "_request_registered_call"),
    *("_request_call", "_ServerStage", "_REQUEST_CALL_TAG", "_SHUTDOWN_TAG"),
)
_OF_STATE: Final = (
    *("lock", "completion_queue", "server", "stage", "due", "rpc_states", "active_rpc_count"),
    *("maximum_concurrent_rpcs", "registered_method_handlers", "server_deallocated"),
)


@runtime_checkable
class TakesCalls(Protocol):
    """An interceptor that can serve unary methods by itself, without grpcio's chain of handlers."""

    def lane_method(
        self,
        method: str,
        handler: grpc.RpcMethodHandler[Any, Any],
        *,
        pool: FairThreadPool,
        at_once: AtOnce | None,
        budget: ByteBudget,
    ) -> MakeCall | None:
        """What makes a call of this method; None: it is to go grpcio's way."""
        ...

    def lane_overflow(self, state: Any, event: Any) -> LaneCall:  # noqa: ANN401  # private types of grpcio
        """A call of any method that came while the server had all that it takes: it is to be refused, unjudged."""
        ...


def available(server: grpc.Server) -> bool:
    """Whether this release of grpcio has every private name that is needed here."""
    state = getattr(server, "_state", None)
    return (
        lane_call.AVAILABLE
        and all(hasattr(_SERVER, name) for name in _OF_SERVER)
        and all(hasattr(state, name) for name in _OF_STATE)
    )


class Lane:
    """The serving loop of a server, with methods that it takes for itself.

    Args:
        server: made by `grpc.server`, bound and not started; `available`.
        methods: what makes a call, by full name of its method. Each must be registered with the server.
        overflow: what makes a call, of any method, that came while the server had all that it takes.
        pool: the server's threads.
    """

    def __init__(
        self, server: grpc.Server, methods: Mapping[str, MakeCall], overflow: MakeCall, pool: FairThreadPool
    ) -> None:
        self._state: Any = server._state  # type: ignore[attr-defined]  # private: see `available`
        self._methods = dict(methods)
        self._overflow = overflow
        self._most = self._state.maximum_concurrent_rpcs or math.inf
        self._turns = Turns()
        self._pool = pool
        self._pressure = Pressure(pool.size)
        self._known = LinesOfConnections()

    def start(self) -> None:
        """Begins to serve, as `grpc.Server.start` does; the server's own `stop` ends it."""
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = _SERVER._ServerStage.STARTED
            for method in state.registered_method_handlers:
                _SERVER._request_registered_call(state, method)
            _SERVER._request_call(state)
        threading.Thread(target=self._serve, name="lane", daemon=True).start()

    def _serve(self) -> None:
        state, turns = self._state, self._turns
        poll, timeout = state.completion_queue.poll, lane_call.CYGRPC.CompletionType.queue_timeout
        taken, rested, go_on = 0, 0.0, True
        while go_on:
            begun = time.monotonic()
            event = self._look(poll) if turns else poll(time.time() + _LOOK_S)
            now = time.monotonic()
            if now - begun >= _REST_S:
                rested = now
            if state.server_deallocated:
                _SERVER._begin_shutdown_once(state)
            came = event.completion_type != timeout
            if came:
                go_on = self._sort(event)
                taken += 1
            elif not turns:
                self._pool.limit(self._pressure.idle())
            del event  # before the next poll: it may hold the last reference to an ended call
            # All that came is in its line, or so much that the lines must not wait for more; or there is one call and
            # nothing else to do, and to look for more would have it wait for threads of grpcio that are about to end.
            alone = state.active_rpc_count <= 1 and now - rested < _LATELY_S
            if turns and go_on and (not came or alone or taken >= _MOST_TAKEN):
                taken, until = 0, now + _TURNS_S
                go_on = turns.next()() is not False
                while turns and go_on and time.monotonic() < until:
                    go_on = turns.next()() is not False

    def _look(self, poll: Callable[[float], Any]) -> Any:  # noqa: ANN401  # cygrpc's
        """What has come; how long that took beyond the looking itself is how long others kept the interpreter."""
        begun = time.monotonic()
        event = poll(_AT_ONCE)
        now = time.monotonic()
        pressure, before = self._pressure, self._pressure.limit
        if pressure.waited(now - begun, now) != before:
            self._pool.limit(pressure.limit)
        return event

    def _sort(self, event: Any) -> bool:  # noqa: ANN401  # cygrpc's
        """Puts what an event asks for into its line, or does it where that is next to nothing; False at the end."""
        state, tag = self._state, event.tag
        if type(tag) is not str or tag == _SERVER._SHUTDOWN_TAG or not event.success:
            return bool(_SERVER._process_event_and_continue(state, event))
        address = event.call.peer()
        line = self._known.of(address)
        self._pressure.seen(line, time.monotonic())
        # Calls of this loop and grpcio's own way alike: it would refuse without a word of when to come back.
        full = state.active_rpc_count >= self._most
        make = self._overflow if full else self._methods.get(tag)
        if make is None:
            self._turns.put(line, partial(_SERVER._process_event_and_continue, state, event))
            return True
        call = self._make(event, make)
        call.line, call.turns = line, self._turns
        self._turns.put(line, partial(self._take, call, address))
        return True

    def _make(self, event: Any, make: MakeCall) -> LaneCall:  # noqa: ANN401  # cygrpc's
        state = self._state
        with state.lock:
            state.due.remove(event.tag)
            call = make(state, event)
            state.rpc_states.add(call)
            state.active_rpc_count += 1
            if state.stage is _SERVER._ServerStage.STARTED:
                if event.tag == _SERVER._REQUEST_CALL_TAG:
                    _SERVER._request_call(state)
                else:
                    _SERVER._request_registered_call(state, event.tag)
        return call

    def _take(self, call: LaneCall, address: object) -> None:
        guess = call.line
        call.take()
        if call.line != guess:
            self._known.learn(address, call.line)


def lane_of(
    server: grpc.Server,
    pool: FairThreadPool,
    services: Sequence[RegisteredService],
    interceptors: Sequence[grpc.ServerInterceptor],
    budget: ByteBudget,
) -> Lane | None:
    """The lane of all unary methods, if the only interceptor serves them itself; another one would be passed by.

    None where that is not so, or this release of grpcio lacks a name: the server is then started as it is.
    """
    if len(interceptors) != 1 or not isinstance(interceptors[0], TakesCalls) or not available(server):
        return None
    methods = {}
    for service in services:
        for name, handler in service.handlers.items():
            if handler.unary_unary is None:
                continue
            method = f"/{service.name}/{name}"
            make = interceptors[0].lane_method(
                method, handler, pool=pool, at_once=service.at_once.get(name), budget=budget
            )
            if make is not None:
                methods[method] = make
    return Lane(server, methods, interceptors[0].lane_overflow, pool)
