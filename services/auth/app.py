"""Wires the auth service; nothing else does."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.auth.v1 import (
    admin_service_pb2,
    credential_service_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
)
from casemate.clock import Clock, SystemClock
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.audit_heads import AUDIT_HEAD, AuditHeads
from casemate.gate.adapters.counts import GateCounts
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import FOREIGN, PolicyTable
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.trust import SENSITIVE_STALENESS, TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.json_log import log_to_stderr
from casemate.keys.v1 import key_service_pb2
from casemate.settings import load_settings
from casemate.signing.strict_json import canonical
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.health import HealthState, aio_health_service
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.reflection import aio_reflection_service
from casemate.transport.registry import RegisteredService, methods_of
from casemate.transport.server import DEFAULT_LAME_DUCK, AioServer, build_aio_server
from services.auth.feed import HEARTBEAT, SWEEP, TrustPublisher
from services.auth.http_face import FacePace, build_face
from services.auth.key_ring import LOOKED_AT, TokenKeyRing, open_ring
from services.auth.key_schedule import KeySchedule
from services.auth.known_clients import KnownClients
from services.auth.log_teller import DatasetsLog, LogTeller
from services.auth.opening import Authority, open_authority
from services.auth.rpc_wiring import build_services
from services.auth.settings import AuthSettings
from services.auth.store.credentials import CredentialStore
from services.auth.store.ended_families import EndedFamilies
from services.auth.store.families import FamilyStore
from services.auth.store.news import NewsReader
from services.auth.store.wake import WakeListener

if TYPE_CHECKING:
    from casemate.gate.core.audit import AuditSink

AUDIENCE: Final = "auth"
_GRACE: Final = timedelta(seconds=5)
_LOG_TOLD_EVERY: Final = timedelta(seconds=1)
SHARES: Final = Shares(places=128)
"""Calls at once; shared out as soon as two tenants call."""
_DESCRIPTORS: Final = (
    admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
    credential_service_pb2.DESCRIPTOR.services_by_name["CredentialService"],
    release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"],
    token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
    trust_service_pb2.DESCRIPTOR.services_by_name["TrustService"],
    witness_service_pb2.DESCRIPTOR.services_by_name["WitnessService"],
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often the service looks, and how it ends.

    Attributes:
        heartbeat: longest time between two reads of the primary.
        sweep: time between two reads of every row.
        lame_duck: how long calls are still taken once health says no.
        keys: how long token keys live.
        keys_looked_at: how often that is looked at.
        face: how long the HTTPS face waits.
    """

    heartbeat: timedelta = HEARTBEAT
    sweep: timedelta = SWEEP
    lame_duck: timedelta = DEFAULT_LAME_DUCK
    keys: KeySchedule = field(default_factory=KeySchedule)
    keys_looked_at: timedelta = LOOKED_AT
    face: FacePace = field(default_factory=FacePace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service that takes calls."""

    port: int
    http_port: int
    metrics_port: int
    metrics: Metrics
    health: HealthState
    trust: TrustState

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of rpcs, of OAuth, and of metrics."""
        return self.port, self.http_port, self.metrics_port


class _HealthReport:
    """Says SERVING while the primary was read lately: otherwise another replica should be asked."""

    def __init__(self, health: HealthState, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics

    def looked(self, staleness: timedelta) -> None:
        """Takes how long ago the primary was read."""
        self._metrics.set_value("trust_staleness_seconds", staleness.total_seconds())
        for name in ("", *(service.full_name for service in _DESCRIPTORS)):
            self._health.set_serving(name, serving=staleness < SENSITIVE_STALENESS)


async def run(environment: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        ConfigurationError: it cannot start as configured.
        Unavailable: the database is not there.
    """
    log_to_stderr()
    settings = load_settings(AuthSettings, environment, component="auth")
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(settings) as running:
        _log.info("ready: rpcs on port %d, OAuth on %d, metrics on %d", *running.ports)
        await ended.wait()
        _log.info("draining")


@asynccontextmanager
async def serving(
    settings: AuthSettings, *, clock: Clock | None = None, pace: Pace | None = None, shares: Shares = SHARES
) -> AsyncIterator[Running]:
    """The running service; drains and closes everything at the end.

    Args:
        settings: where everything is.
        clock: time; the machine's own if not given.
        pace: how often it looks, and how it ends.
        shares: how much one caller and one tenant may ask for.
    """
    clock, pace = clock or SystemClock(), pace or Pace()
    metrics = Metrics("auth")
    async with AsyncExitStack() as stack:
        source = CertificateSource(settings.identity.directory, metrics=metrics)
        source.start()
        stack.callback(source.close)
        authority = await open_authority(settings, stack, metrics)
        ring = await open_ring(settings, authority, stack, clock=clock, schedule=pace.keys)
        trust = TrustState(staleness=settings.trust.staleness)
        credentials = CredentialStore(pool=authority.pool, tables=authority.tables)
        known = KnownClients(
            read=credentials.client_by_certificate, news_age=lambda: trust.staleness(clock), clock=clock
        )
        ended = EndedFamilies(pool=authority.pool, tables=authority.tables)
        families = FamilyStore(pool=authority.pool, tables=authority.tables, ended=ended)
        health_rpc, health = aio_health_service()
        report = _HealthReport(health, metrics)
        publisher = _publisher(
            settings, authority, ring=ring, trust=trust, report=report, known=known, ended=ended, clock=clock, pace=pace
        )
        await publisher.refresh()
        await ended.look(clock.now())
        ring.follow(trust)
        report.looked(trust.staleness(clock))
        services, tokens = build_services(
            settings, authority, ring, publisher, families=families, known=known, trust=trust, clock=clock
        )
        services += [health_rpc, aio_reflection_service([service.name for service in (*services, health_rpc)])]
        audit, counts = _open_audit(settings, stack), GateCounts(metrics)
        gate = _gate(settings, services, trust=trust, clock=clock, audit=audit, counts=counts, shares=shares)
        server = build_aio_server(
            source=source,
            services=services,
            interceptors=[AioGateInterceptor(gate)],
            address=settings.listen.address,
            health=health,
            lame_duck=pace.lame_duck,
        )
        metrics_server = _show_metrics(settings, stack, metrics, source)
        face = build_face(settings, source=source, gate=gate, tokens=tokens, clock=clock, pace=pace.face)
        await face.start()
        stack.push_async_callback(face.stop, _GRACE)
        await _take_calls(settings, stack, server, publisher, turning=ring.run(every=pace.keys_looked_at))
        _tell_log(settings, stack, source, authority, audit)
        ports = {"port": server.port, "http_port": face.port, "metrics_port": metrics_server.port}
        yield Running(**ports, metrics=metrics, health=health, trust=trust)


def _publisher(
    settings: AuthSettings,
    authority: Authority,
    *,
    ring: TokenKeyRing,
    trust: TrustState,
    report: _HealthReport,
    known: KnownClients,
    ended: EndedFamilies,
    clock: Clock,
    pace: Pace,
) -> TrustPublisher:
    """What tells everybody, this service too, of each change."""
    return TrustPublisher(
        reader=NewsReader(pool=authority.pool, tables=authority.tables, issuer=settings.issuer, clock=clock),
        state=trust,
        alarms=authority.alarms,
        after_change=ring.reload,
        looked=report.looked,
        clock=clock,
        heartbeat=pace.heartbeat,
        sweep=pace.sweep,
        clients_changed=known.forget,
        sweep_too=ended.look,
    )


async def _take_calls(
    settings: AuthSettings,
    stack: AsyncExitStack,
    server: AioServer,
    publisher: TrustPublisher,
    *,
    turning: Coroutine[None, None, None],
) -> None:
    await server.start()
    stack.push_async_callback(server.stop, _GRACE)
    # Watches have no end of their own, so they are ended before the server waits for its calls.
    stack.callback(publisher.close)
    listener = WakeListener(settings=settings.database, wake=publisher.wake)
    for work in (publisher.run(), listener.run(), turning):
        stack.push_async_callback(_cancel, asyncio.create_task(work))


def _tell_log(
    settings: AuthSettings, stack: AsyncExitStack, source: CertificateSource, authority: Authority, audit: AuditFile
) -> None:
    """Has the transparency log told of every change and of the audit's heads, where it is said to be."""
    if settings.datasets_address is None:
        return
    channel = RotatingChannel(target=settings.datasets_address, service_name="datasets", source=source)
    stack.callback(channel.close)
    metrics = authority.metrics
    metrics.gauge("log_untold_changes", "Changes of the authority that the transparency log was not told of yet.")
    log = DatasetsLog(channel)
    heads = AuditHeads(path=settings.audit_file, head=lambda: audit.head)
    teller = LogTeller(
        pool=authority.pool,
        tables=authority.tables,
        key=authority.key,
        alarms=authority.alarms,
        log=log,
        lag=lambda value: metrics.set_value("log_untold_changes", value),
    )
    telling = heads.run(lambda body: log.append(AUDIT_HEAD, canonical(body)))
    for work in (teller.run(_LOG_TOLD_EVERY), telling):
        stack.push_async_callback(_cancel, asyncio.create_task(work))


def _show_metrics(
    settings: AuthSettings, stack: AsyncExitStack, metrics: Metrics, source: CertificateSource
) -> MetricsServer:
    server = MetricsServer(metrics, source, settings.listen.metrics_address)
    stack.callback(server.stop)
    server.start()
    return server


def _gate(
    settings: AuthSettings,
    services: list[RegisteredService],
    *,
    trust: TrustState,
    clock: Clock,
    audit: AuditSink,
    counts: GateCounts,
    shares: Shares,
) -> Gate:
    policies = PolicyTable.from_descriptors(_DESCRIPTORS, FOREIGN).admitting(
        "/casemate.auth.v1.TrustService/WatchTrust", settings.audiences.others
    )
    policies.require(methods_of(services))
    return Gate(
        policies=policies,
        verifier=TokenVerifier(issuer=settings.issuer, audience=AUDIENCE),
        cache=TokenCache(observe=counts.looked_up),
        trust=trust,
        peers=PeerVerifier(trust_domain=settings.identity.trust_domain, post_quantum=settings.trust.post_quantum),
        quota=LocalQuota(clock=clock, shares=shares),
        audit=audit,
        clock=clock,
        observer=counts,
    )


def _open_audit(settings: AuthSettings, stack: AsyncExitStack) -> AuditFile:
    audit = AuditFile(settings.audit_file)
    stack.callback(audit.close)
    return audit


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
