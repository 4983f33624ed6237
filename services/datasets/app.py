"""Wires the datasets service; nothing else does."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.audit_heads import AUDIT_HEAD, AuditHeads
from casemate.gate.adapters.counts import GateCounts
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import FOREIGN, PolicyTable
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.json_log import log_to_stderr
from casemate.keys.v1 import key_service_pb2
from casemate.sealing.key_ring import KekWatch
from casemate.settings import load_settings
from casemate.signing.checkpoint import verification_key
from casemate.signing.dataset_manifest import MAXIMUM_MESSAGE_BYTES
from casemate.transport.byte_budget import budget_of
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.health import aio_health_service
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.reflection import aio_reflection_service
from casemate.transport.registry import methods_of
from casemate.transport.server import DEFAULT_LAME_DUCK, build_aio_server
from services.datasets.auth_witness import AuthWitness
from services.datasets.checkpoints import WITNESS_EVERY, Checkpoints, Witness
from services.datasets.exports import Exports
from services.datasets.health_probe import HealthProbe
from services.datasets.large_buffers import give_back_large_buffers
from services.datasets.opening import Stores, log_origin, open_shredder, open_stores
from services.datasets.retention import CLOCKS_AGREE_WITHIN, Retention
from services.datasets.rpc_wiring import AUDIENCE, Footing, build_services, resolver
from services.datasets.schedules import Surplus
from services.datasets.settings import DatasetsSettings
from services.datasets.supervision import keep_running
from services.datasets.trusted import is_trusted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import timedelta

    from casemate.gate.core.audit import AuditSink
    from casemate.sealing.key_ring import DataKeyRing
    from casemate.signing.keys import PublicKey, SigningKey
    from casemate.transport.health import HealthState
    from casemate.transport.registry import RegisteredService
    from casemate.transport.server import AioServer
    from services.datasets.shred import Shredder

__all__ = ["AUDIENCE", "Running", "Stores", "log_origin", "open_shredder", "open_stores", "run", "serving"]

_LOGGER = logging.getLogger(__name__)
_PLACES = 128  # calls at once; shared out as soon as two tenants call
_DESCRIPTORS = (
    dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
    log_service_pb2.DESCRIPTOR.services_by_name["LogService"],
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that takes calls.

    `log_key` verifies the log's checkpoints and the receipts of shredding; `ring` holds
    the data keys that are unwrapped now; `retention` does every minute what its `look` does at once.
    """

    port: int
    metrics_port: int
    metrics: Metrics
    health: HealthState
    log_key: PublicKey
    ring: DataKeyRing
    retention: Retention
    audit_heads: AuditHeads
    stores: Stores


async def run(environment: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        ConfigurationError: it cannot start as configured.
        Unavailable: a database is not there.
    """
    log_to_stderr()
    settings = load_settings(DatasetsSettings, environment, component="datasets")
    if settings.unsafe_accept_pkcs1:
        _LOGGER.warning("CASEMATE_DATASETS_UNSAFE_ACCEPT_PKCS1 is set: suppliers' RSA keys may sign by PKCS#1 v1.5")
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(settings) as running:
        _LOGGER.info("log key: %s", verification_key(log_origin(settings.identity.trust_domain), running.log_key))
        _LOGGER.info("ready: rpcs on port %d, metrics on port %d", running.port, running.metrics_port)
        await ended.wait()
        _LOGGER.info("draining")


@asynccontextmanager
async def serving(
    settings: DatasetsSettings,
    *,
    trust: TrustState | None = None,
    clock: Clock | None = None,
    lame_duck: timedelta = DEFAULT_LAME_DUCK,
    witness: Witness | None = None,
    clocks_agree_within: timedelta = CLOCKS_AGREE_WITHIN,
) -> AsyncIterator[Running]:
    """The running service; drains and closes everything at the end.

    Args:
        settings: where everything is.
        trust: what to trust; fed by the auth service's trust feed if not given.
        clock: time; the machine's own if not given.
        lame_duck: how long calls are still taken once health says no.
        witness: cosigns the log's checkpoints; the auth service, if `trust` is not given either.
        clocks_agree_within: how far this clock and the database's may be apart for retention to act.
    """
    give_back_large_buffers()
    clock = clock or SystemClock()
    metrics = Metrics("datasets")
    async with AsyncExitStack() as stack:
        source = _open_identity(settings, stack, metrics)
        stores, signing_key = await open_stores(settings, stack, metrics, clock)
        if trust is None:
            trust = TrustState(staleness=settings.trust.staleness)
            auth = _follow(settings, stack, source, trust, clock)
            witness = witness or AuthWitness(auth)
        checkpoints = _show_log(settings, stack, stores, signing_key, witness)
        footing = _footing(
            settings, stack, stores=stores, log_key=signing_key, trust=trust, clock=clock, checkpoints=checkpoints
        )
        services = build_services(footing)
        health_rpc, health = aio_health_service()
        services += [health_rpc, aio_reflection_service([service.name for service in (*services, health_rpc)])]
        audit, counts = _open_audit(settings, stack), GateCounts(metrics)
        gate = _gate(settings, services=services, trust=trust, clock=clock, audit=audit, counts=counts)
        server = _server(settings, source=source, services=services, gate=gate, health=health, lame_duck=lame_duck)
        metrics_server = _show_metrics(settings, stack, metrics, source)
        probe = _probe(footing, health=health, services=services, metrics=metrics)
        await probe.look()
        await server.start()
        stack.push_async_callback(server.stop)
        retention = _retention(footing, clocks_agree_within)
        heads = AuditHeads(path=settings.audit_file, head=lambda: audit.head)
        _keep_all_running(stack, stores, probe=probe, shredder=footing.shredder, retention=retention, heads=heads)
        yield Running(
            port=server.port,
            metrics_port=metrics_server.port,
            metrics=metrics,
            health=health,
            log_key=signing_key.public,
            ring=stores.keys.ring,
            retention=retention,
            audit_heads=heads,
            stores=stores,
        )


def _footing(
    settings: DatasetsSettings,
    stack: AsyncExitStack,
    *,
    stores: Stores,
    log_key: SigningKey,
    trust: TrustState,
    clock: Clock,
    checkpoints: Checkpoints,
) -> Footing:
    return Footing(
        settings=settings,
        stores=stores,
        log_key=log_key,
        trust=trust,
        clock=clock,
        shredder=open_shredder(settings, stores, log_key, clock),
        exports=_open_exports(settings, stack, stores, log_key, clock),
        checkpoints=checkpoints,
    )


def _server(
    settings: DatasetsSettings,
    *,
    source: CertificateSource,
    services: list[RegisteredService],
    gate: Gate,
    health: HealthState,
    lame_duck: timedelta,
) -> AioServer:
    return build_aio_server(
        source=source,
        services=services,
        interceptors=[AioGateInterceptor(gate, budget=budget_of(MAXIMUM_MESSAGE_BYTES))],
        address=settings.listen.address,
        health=health,
        lame_duck=lame_duck,
        max_message_bytes=MAXIMUM_MESSAGE_BYTES,
    )


def _probe(
    footing: Footing, *, health: HealthState, services: list[RegisteredService], metrics: Metrics
) -> HealthProbe:
    return HealthProbe(
        health=health,
        services=[service.name for service in services],
        ping=footing.stores.ping,
        trust=footing.trust,
        staleness=footing.settings.trust.staleness,
        metrics=metrics,
        clock=footing.clock,
    )


def _retention(footing: Footing, clocks_agree_within: timedelta) -> Retention:
    stores = footing.stores
    settings, resolve = footing.settings, resolver(footing.settings, footing.trust)
    return Retention(
        schedules=stores.schedules,
        surplus=Surplus(counts=lambda upload: is_trusted(upload, resolve), kept_for=settings.surplus_kept_for),
        decisions=stores.decisions,
        discards=stores.discards,
        labels=stores.labels,
        shredder=footing.shredder,
        upload_lifetime=settings.upload_lifetime,
        clock=footing.clock,
        clocks_agree_within=clocks_agree_within,
    )


def _keep_all_running(
    stack: AsyncExitStack,
    stores: Stores,
    *,
    probe: HealthProbe,
    shredder: Shredder,
    retention: Retention,
    heads: AuditHeads,
) -> None:
    """What goes on beside the rpcs, each begun again when it fails, until `stack` ends."""
    for name, work in (
        ("health probe", probe.watch),
        ("shredder", shredder.run),
        ("retention", retention.run),
        ("audit heads", lambda: heads.run(lambda body: stores.log.append_alone(AUDIT_HEAD, body, by=AUDIENCE))),
        ("watch of the key-encryption key", KekWatch(kek=stores.kek, rings=(stores.keys.ring,)).run),
    ):
        stack.push_async_callback(_cancel, asyncio.create_task(keep_running(name, work)))


def _open_identity(settings: DatasetsSettings, stack: AsyncExitStack, metrics: Metrics) -> CertificateSource:
    source = CertificateSource(settings.identity.directory, metrics=metrics)
    source.start()
    stack.callback(source.close)
    return source


def _show_metrics(
    settings: DatasetsSettings, stack: AsyncExitStack, metrics: Metrics, source: CertificateSource
) -> MetricsServer:
    server = MetricsServer(metrics, source, settings.listen.metrics_address)
    stack.push_async_callback(asyncio.to_thread, server.stop)
    server.start()
    return server


def _open_exports(
    settings: DatasetsSettings, stack: AsyncExitStack, stores: Stores, log_key: SigningKey, clock: Clock
) -> Exports:
    origin = log_origin(settings.identity.trust_domain)
    exports = Exports(log=stores.log, origin=origin, log_key=log_key, clock=clock)
    stack.push_async_callback(exports.close)
    return exports


def _show_log(
    settings: DatasetsSettings, stack: AsyncExitStack, stores: Stores, key: SigningKey, witness: Witness | None
) -> Checkpoints:
    checkpoints = Checkpoints(
        log=stores.log,
        key=key,
        origin=log_origin(settings.identity.trust_domain),
        alarms=stores.alarms,
        witness=witness,
    )
    if witness is not None:
        stack.push_async_callback(_cancel, asyncio.create_task(checkpoints.watch(WITNESS_EVERY)))
    return checkpoints


def _gate(
    settings: DatasetsSettings,
    *,
    services: list[RegisteredService],
    trust: TrustState,
    clock: Clock,
    audit: AuditSink,
    counts: GateCounts,
) -> Gate:
    policies = PolicyTable.from_descriptors(_DESCRIPTORS, FOREIGN)
    policies.require(methods_of(services))
    domain = settings.identity.trust_domain
    return Gate(
        policies=policies,
        verifier=TokenVerifier(issuer=f"https://auth.{domain}", audience=AUDIENCE),
        cache=TokenCache(observe=counts.looked_up),
        trust=trust,
        peers=PeerVerifier(trust_domain=domain, post_quantum=settings.trust.post_quantum),
        quota=LocalQuota(clock=clock, shares=Shares(places=_PLACES)),
        audit=audit,
        clock=clock,
        observer=counts,
    )


def _follow(
    settings: DatasetsSettings, stack: AsyncExitStack, source: CertificateSource, trust: TrustState, clock: Clock
) -> RotatingChannel:
    channel = RotatingChannel(target=settings.auth_address, service_name="auth", source=source)
    stack.callback(channel.close)
    feed = TrustFeed(channel, trust, clock)
    stack.callback(feed.close)
    feed.start()
    return channel


def _open_audit(settings: DatasetsSettings, stack: AsyncExitStack) -> AuditFile:
    audit = AuditFile(settings.audit_file)
    stack.callback(audit.close)
    return audit


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
