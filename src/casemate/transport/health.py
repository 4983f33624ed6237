"""`grpc.health.v1.Health`, for the synchronous and the aio server, over one state.

The servicers of grpcio-health-checking are not used: its aio `Watch` forgets every
watcher of a service when one of them leaves, and its synchronous one keeps an
entry for each unknown name that it is asked about. Its messages are used.

If this fails: balancers send calls to a server that drains; those calls fail
with UNAVAILABLE and idempotent ones are tried elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from casemate.transport.registry import RegisteredService, registered

SERVICE_NAME = "grpc.health.v1.Health"

_Status = int
_SERVING: _Status = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: _Status = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: _Status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthState:
    """What is served, by service name; the empty name is the whole server. Safe from any thread.

    Begins as serving the whole server. After `drain` nothing serves again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[str, _Status] = {"": _SERVING}
        self._watchers: dict[object, tuple[str, Callable[[_Status], None]]] = {}
        self._draining = False
        self._held_back = False

    def set_serving(self, service: str, *, serving: bool) -> None:
        """Says whether a service takes calls; without effect once draining."""
        with self._lock:
            if not self._draining:
                self._put(service, _SERVING if serving else _NOT_SERVING)

    def drain(self) -> None:
        """Tells every watcher, for good, that no service takes calls."""
        with self._lock:
            self._draining = True
            for service in self._statuses:
                self._put(service, _NOT_SERVING)

    def hold_back(self, held: bool) -> None:  # noqa: FBT001  # a callback of `CertificateSource.on_ending`
        """Has every service say that it takes no calls, whatever was set, until this is taken back."""
        with self._lock:
            before = {service: self._shown(service) for service in self._statuses}
            self._held_back = held
            for service, status in before.items():
                if self._shown(service) != status:
                    self._tell(service)

    def status(self, service: str) -> _Status | None:
        """The status of a service; None if there is no such service."""
        with self._lock:
            return self._shown(service)

    def watch(self, service: str, callback: Callable[[_Status], None]) -> Callable[[], None]:
        """Has `callback` called with the status now and at each change.

        The callback must not block and must not call back into this object.

        Returns:
            A function that ends the watch.
        """
        key = object()
        with self._lock:
            self._watchers[key] = (service, callback)
            status = self._shown(service)
            callback(_UNKNOWN if status is None else status)

        def end() -> None:
            with self._lock:
                self._watchers.pop(key, None)

        return end

    def _put(self, service: str, status: _Status) -> None:
        before = self._shown(service)
        self._statuses[service] = status
        if self._shown(service) != before:
            self._tell(service)

    def _shown(self, service: str) -> _Status | None:
        status = self._statuses.get(service)
        return _NOT_SERVING if self._held_back and status is not None else status

    def _tell(self, service: str) -> None:
        status = self._shown(service)
        for watched, callback in self._watchers.values():
            if watched == service and status is not None:
                callback(status)


def health_service() -> tuple[RegisteredService, HealthState]:
    """Health for the synchronous server. A watcher takes no thread.

    Whatever wraps `Watch` must carry its attributes over: grpcio knows a behaviour that
    takes no thread by an attribute of the function.
    """
    state = HealthState()
    return registered(health_pb2_grpc.add_HealthServicer_to_server, _SyncHealth(state)), state


def aio_health_service() -> tuple[RegisteredService, HealthState]:
    """Health for the aio server."""
    state = HealthState()
    return registered(health_pb2_grpc.add_HealthServicer_to_server, _AioHealth(state)), state


def _response(status: _Status) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=status)


class _SyncHealth:
    def __init__(self, state: HealthState) -> None:
        self._state = state
        self.Watch = self._make_watch()

    def Check(  # noqa: N802  # the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = self._state.status(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        return _response(status)

    def _make_watch(self) -> Callable[..., None]:
        def watch(
            request: health_pb2.HealthCheckRequest,
            context: grpc.ServicerContext,
            send_response_callback: Callable[[Any], None],
        ) -> None:
            watcher = _SyncWatcher(send_response_callback)
            end = self._state.watch(request.service, watcher.changed)

            def finish() -> None:
                end()
                send_response_callback(None)

            if not context.add_callback(finish):
                finish()

        # Read by grpcio's server: the behaviour returns at once and sends by callback, and a pool
        # of its own keeps watchers that do not read from taking the threads of calls.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        watch.experimental_thread_pool = ThreadPoolExecutor(2, "health")  # type: ignore[attr-defined]
        return watch


class _SyncWatcher:
    """Sends the newest status from a thread of its own: sending waits for the peer to read."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._newest: _Status | None = None

    def changed(self, status: _Status) -> None:
        """Never blocks. Changes are few, so a thread for each is cheap."""
        with self._lock:
            self._newest = status
        threading.Thread(target=self._flush, name="health-watch", daemon=True).start()

    def _flush(self) -> None:
        with self._sending:
            with self._lock:
                status, self._newest = self._newest, None
            if status is not None:
                self._send(_response(status))


class _AioHealth:
    def __init__(self, state: HealthState) -> None:
        self._state = state

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        status = self._state.status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "not found")
        return _response(status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        loop = asyncio.get_running_loop()
        changes: asyncio.Queue[_Status] = asyncio.Queue()

        def changed(status: _Status) -> None:
            loop.call_soon_threadsafe(changes.put_nowait, status)

        end = self._state.watch(request.service, changed)
        try:
            while True:
                yield _response(await changes.get())
        finally:
            end()
