"""The only makers of gRPC servers.

A server is built with mutual TLS 1.3, proven before it binds; hardened options;
a certificate that is read from memory at each handshake; health; and an end
that loses no call: health says no, balancers leave, running calls finish.

If this fails: see `floor` (TLS 1.2), `certificates` (an old certificate) and
`options` (one peer takes the others' share). Every call still passes the gate.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc

from casemate.errors import ConfigurationError
from casemate.transport.byte_budget import budget_of
from casemate.transport.certificates import CertificatePair, CertificateSource
from casemate.transport.fair_pool import FairThreadPool
from casemate.transport.floor import probe_floor
from casemate.transport.health import SERVICE_NAME as HEALTH
from casemate.transport.health import HealthState, aio_health_service, health_service
from casemate.transport.lane import Lane, lane_of
from casemate.transport.options import DEFAULT_MAX_MESSAGE_BYTES, MAXIMUM_CONCURRENT_CALLS, server_options
from casemate.transport.registry import RegisteredService, registered

__all__ = ["AioServer", "RegisteredService", "SyncServer", "build_aio_server", "build_server", "registered"]

DEFAULT_GRACE = timedelta(seconds=10)
DEFAULT_LAME_DUCK = timedelta(milliseconds=300)
"""How long calls are still taken after health says no; balancers that watch health leave in it (measured)."""

_OVERFLOWING = 2
"""As many times that are known to grpc.aio at once: the gate refuses what is beyond, with a word of when to come back,
and grpcio, without one, what comes while as many again are being refused."""


class SyncServer:
    """A bound synchronous server; `build_server` makes it."""

    def __init__(
        self,
        *,
        server: grpc.Server,
        threads: FairThreadPool,
        port: int,
        services: Sequence[RegisteredService],
        health: HealthState,
        lame_duck: timedelta,
        lane: Lane | None = None,
    ) -> None:
        self._server = server
        self._lane = lane
        self._threads = threads
        self._lame_duck = lame_duck
        self.port = port
        self.services = tuple(services)
        self.health = health

    def start(self) -> None:
        """Begins to serve."""
        if self._lane is not None:
            self._lane.start()
        else:
            self._server.start()

    def stop(self, grace: timedelta = DEFAULT_GRACE) -> None:
        """Drains and ends: health to NOT_SERVING, lame duck, then running calls get `grace`. Blocks."""
        self.health.drain()
        # Nothing signals that balancers have left; the wait is the measured time they need.
        threading.Event().wait(self._lame_duck.total_seconds())
        self._server.stop(grace.total_seconds()).wait()
        # Not waited for: a handler that outstays the grace has lost its call, and must not hold up the end.
        self._threads.shutdown(wait=False)


class AioServer:
    """A bound aio server; `build_aio_server` makes it."""

    def __init__(
        self,
        *,
        server: grpc.aio.Server,
        port: int,
        services: Sequence[RegisteredService],
        health: HealthState,
        lame_duck: timedelta,
    ) -> None:
        self._server = server
        self._lame_duck = lame_duck
        self.port = port
        self.services = tuple(services)
        self.health = health

    async def start(self) -> None:
        """Begins to serve."""
        await self._server.start()

    async def stop(self, grace: timedelta = DEFAULT_GRACE) -> None:
        """Drains and ends: health to NOT_SERVING, lame duck, then running calls get `grace`."""
        self.health.drain()
        await asyncio.sleep(self._lame_duck.total_seconds())
        await self._server.stop(grace.total_seconds())


def server_credentials(source: CertificateSource) -> grpc.ServerCredentials:
    """Mutual TLS whose certificate is the source's current one at each handshake; for one port.

    A handshake gets a new configuration only after the source's has changed; a
    session ticket of before is then refused. One for each handshake would end
    tickets altogether, and was found to end the process: grpcio frees the
    configuration that another thread's handshake is about to use (grpc/grpc#36693,
    open), and two hundred connections at once are enough. So tickets are taken, and the gate judges the
    dates of the certificate on every call, as it has to on open connections.
    """
    told = source.current

    def configuration(pair: CertificatePair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(pair.private_key_pem.reveal(), pair.certificate_chain_pem)], root_certificates=pair.roots_pem
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal told
        present = source.current
        if present is told:
            return None  # grpcio goes on with what it has
        told = present
        return configuration(present)

    return grpc.dynamic_ssl_server_credentials(
        configuration(told),
        fetch,  # type: ignore[arg-type]  # None means unchanged, in grpcio's documentation and code; its stubs forget it
        require_client_authentication=True,
    )


def build_server(
    *,
    source: CertificateSource,
    services: Sequence[RegisteredService],
    interceptors: Sequence[grpc.ServerInterceptor],
    address: str,
    threads: int = 16,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    health: HealthState | None = None,
    lame_duck: timedelta = DEFAULT_LAME_DUCK,
    share_port: bool = False,
    lane: bool = True,
) -> SyncServer:
    """A bound synchronous server that is not started yet.

    Args:
        source: the server's certificate, and the roots its clients are judged by.
        services: what is served. Health is added if it is not among them.
        interceptors: outermost first.
        address: `host:port`; port 0 picks a free one.
        threads: handlers that run at once; shared out among callers, see `fair_pool`.
        max_message_bytes: the largest message, either way.
        health: the state of the health service, if that is among `services`.
        lame_duck: how long calls are still taken once health says no.
        share_port: other processes of this user may bind the port as well, and get a part of its connections.
        lane: unary methods are taken where their events arrive, if the one interceptor and grpcio allow it.

    Raises:
        ConfigurationError: TLS 1.2 would be answered, the address cannot be bound, or a service is there twice.
    """
    probe_floor(server_credentials(source))
    credentials = server_credentials(source)
    if health is None:
        service, health = health_service()
        services = (*services, service)
    pool = FairThreadPool(threads, name="call")
    server = grpc.server(
        pool,
        interceptors=list(interceptors),
        options=server_options(max_message_bytes=max_message_bytes, share_port=share_port),
        maximum_concurrent_rpcs=MAXIMUM_CONCURRENT_CALLS,
    )
    port = _prepare(server, services, address, credentials)
    source.on_ending(health.hold_back)
    return SyncServer(
        server=server,
        threads=pool,
        port=port,
        services=services,
        health=health,
        lame_duck=lame_duck,
        lane=lane_of(server, pool, services, interceptors, budget_of(max_message_bytes)) if lane else None,
    )


def build_aio_server(
    *,
    source: CertificateSource,
    services: Sequence[RegisteredService],
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    address: str,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    health: HealthState | None = None,
    lame_duck: timedelta = DEFAULT_LAME_DUCK,
) -> AioServer:
    """A bound aio server that is not started yet; call it inside the event loop that will serve.

    Arguments and errors are those of `build_server`. The probe blocks the loop
    for milliseconds, before anything is served.
    """
    probe_floor(server_credentials(source))
    credentials = server_credentials(source)
    if health is None:
        service, health = aio_health_service()
        services = (*services, service)
    server = grpc.aio.server(
        interceptors=tuple(interceptors),
        options=server_options(max_message_bytes=max_message_bytes),
        maximum_concurrent_rpcs=_OVERFLOWING * MAXIMUM_CONCURRENT_CALLS,
    )
    port = _prepare(server, services, address, credentials)
    source.on_ending(health.hold_back)
    return AioServer(server=server, port=port, services=services, health=health, lame_duck=lame_duck)


def _prepare(
    server: grpc.Server | grpc.aio.Server,
    services: Sequence[RegisteredService],
    address: str,
    credentials: grpc.ServerCredentials,
) -> int:
    """Registers the services and binds; the port that was bound."""
    names = [service.name for service in services]
    if len(set(names)) != len(names):
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        raise ConfigurationError(f"registered twice: {', '.join(twice)}")
    if HEALTH not in names:
        raise ConfigurationError("a health state was given without its service")
    for service in services:
        handlers: dict[str, Any] = dict(service.handlers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
        server.add_registered_method_handlers(service.name, handlers)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        # grpcio's own message is a page of C++ status; the address says enough.
        raise ConfigurationError(f"{address} cannot be bound: the port is in use or the address is not ours") from None
    return int(port)
