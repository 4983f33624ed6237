"""Wires the inference service; nothing else does.

`Dependencies` are what a test may bring of its own; `Service` is built the same
way from them in tests and in production.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from casemate.clock import Clock, SystemClock
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.audit_heads import AUDIT_HEAD, AuditHeads
from casemate.gate.adapters.counts import GateCounts
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.foreign import FOREIGN
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import PolicyTable
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.inference.v1 import model_service_pb2
from casemate.keys.v1 import key_service_pb2
from casemate.transport.certificates import CertificateSource
from casemate.transport.health import health_service
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.reflection import reflection_service
from casemate.transport.registry import methods_of
from casemate.transport.server import DEFAULT_LAME_DUCK, SyncServer, build_server
from services.inference.backends import Backend, Backends, read_backends
from services.inference.blocking_kek import BlockingKek, KekThread
from services.inference.building import Building
from services.inference.dependencies import Datasets
from services.inference.key_wraps import ModelKeyWraps
from services.inference.model_memory import bound_model_memory, half_of_memory
from services.inference.models import Models
from services.inference.opening import open_channel, open_kek, open_repository
from services.inference.predictions import Predictions
from services.inference.preparation import Preparation, available_cores
from services.inference.seat import Announcement, share_out
from services.inference.servicers import MODEL_SERVICE, OPEN_INFERENCE, model_service, open_inference_service
from services.inference.settings import InferenceSettings, ServingSettings
from services.inference.streams import Streams
from services.inference.supply import build_supply
from services.inference.tracing import Sampler
from services.inference.triton_metrics import TritonMetrics
from services.inference.trust_view import TrustView
from services.inference.validation import Limits
from services.inference.vault import Vault
from services.keys.blocking import KEY_SERVICE, blocking_key_service
from services.keys.operations import KeyOperations

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    import grpc

    from casemate.gate.core.audit import AuditSink
    from casemate.sealing.kek import KeyEncryptionKey
    from services.inference.repository import Store
    from services.inference.seat import Seat, Tell

COMPONENT = "inference"
AUDIENCE = "inference"
"""Of tokens and of manifests alike."""

_CALL_TIMEOUT = timedelta(seconds=10)
_LOOK_EVERY = timedelta(milliseconds=500)
_KEK_TIMEOUT = timedelta(seconds=10)
_REWRAP_TIMEOUT = timedelta(seconds=120)  # for one page of keys
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What the service stands on."""

    source: CertificateSource
    trust: TrustState
    auth: grpc.Channel
    datasets: grpc.Channel
    kek: KeyEncryptionKey
    audit: AuditSink
    metrics: Metrics
    clock: Clock
    kek_thread: KekThread | None = None
    """Where `kek` was opened, if it lives in one event loop alone."""


class Service:
    """The inference service: bound when made, serving once started.

    Args:
        dependencies: what it stands on; whoever made them closes them.
        address: `host:port`; port 0 picks a free one.
        trust_domain: of peers and of the issuer of tokens.
        repository: where the sealed models lie.
        serving: how much is served at once.
        staleness: how old the trust feed's news may be.
        lame_duck: how long calls are still taken once health says no.
        backends: upstream back ends that models may name.
        post_quantum: refuse peers whose key exchange a quantum computer could open later.
        seat: its place among several workers on one port; None: it is the only one.
    """

    def __init__(
        self,
        dependencies: Dependencies,
        *,
        address: str,
        trust_domain: str,
        repository: Store,
        serving: ServingSettings,
        staleness: timedelta,
        lame_duck: timedelta = DEFAULT_LAME_DUCK,
        backends: Mapping[str, Backend] | None = None,
        post_quantum: bool = False,
        seat: Seat | None = None,
    ) -> None:
        trust = TrustView(dependencies.trust)
        workers = seat.count if seat is not None else 1
        serving = replace(serving, uploads=max(1, serving.uploads // workers))
        self._serving: bool | None = None
        self._trust, self._staleness = dependencies.trust, staleness
        self._metrics, self._clock = dependencies.metrics, dependencies.clock
        self._kek = BlockingKek(dependencies.kek, timeout=_KEK_TIMEOUT, thread=dependencies.kek_thread)
        self._key_operations = KeyOperations(kek=dependencies.kek, stores=[ModelKeyWraps(repository)])
        self._backends = Backends(
            backends or {}, source=dependencies.source, max_message_bytes=serving.max_message_bytes
        )
        prepare = Preparation(
            instances=max(1, available_cores() // workers), board=seat.board if seat is not None else None
        )
        self.oldest_run = prepare.oldest_run
        supply = build_supply(
            dependencies,
            trust=trust,
            vault=Vault(repository=repository, keys=self._kek),
            build=Building(self._backends, unsafe_division=serving.unsafe_division),
            prepare=prepare,
            audience=f"{AUDIENCE}.{trust_domain}",
            serving=serving,
        )
        self.catalogue, self.watcher = supply.catalogue, supply.watcher
        self.uploads, self.publishing, self.index = supply.uploads, supply.publishing, supply.index
        self.models = self._models(trust, serving)
        places = max(1, serving.threads * 3 // 4)  # the gate's: it keeps a quarter of them for other tenants
        self.streams = Streams(limit=places, idle=serving.stream_idle)
        self.predictions = Predictions(
            catalogue=self.catalogue,
            limits=Limits(object_bytes=serving.max_message_bytes, reply_bytes=serving.max_message_bytes),
            streams=self.streams,
            deadline=serving.deadline,
        )
        dependencies.metrics.registry.register(TritonMetrics(self.catalogue, self.watcher))
        gate = build_gate(dependencies, trust_domain=trust_domain, post_quantum=post_quantum, workers=workers)
        self._interceptor = GateInterceptor(gate, streams=places)
        self._server = self._build_server(dependencies.source, address, serving, lame_duck, shared=seat is not None)

    def _models(self, trust: TrustView, serving: ServingSettings) -> Models:
        return Models(
            trust=trust,
            catalogue=self.catalogue,
            watcher=self.watcher,
            publishing=self.publishing,
            index=self.index,
            version=version("casemate"),
            policies=serving.versions,
        )

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._server.port

    def start(self) -> None:
        """Serves, and begins to load what the feed names. Health says no until `look` finds it ready."""
        self.look()
        self.watcher.start()
        self._server.start()

    def look(self) -> bool:
        """Tells health and metrics whether the trust feed is fresh and the first round of loading is over.

        Also cuts off streams whose peers have gone quiet. To be called every second or so.
        """
        self.streams.cut_idle()
        self.uploads.cut_idle()
        staleness = self._trust.staleness(self._clock)
        self._metrics.set_value("trust_staleness_seconds", staleness.total_seconds())
        serving = staleness <= self._staleness and self.watcher.settled
        if serving is not self._serving:
            self._serving = serving
            for name in ("", *(service.name for service in self._server.services)):
                self._server.health.set_serving(name, serving=serving)
        return serving

    def stop(self) -> None:
        """Drains and ends."""
        self._server.stop()
        self._interceptor.close()
        self.watcher.close()
        self._backends.close()
        self._kek.close()

    def _build_server(
        self,
        source: CertificateSource,
        address: str,
        serving: ServingSettings,
        lame_duck: timedelta,
        *,
        shared: bool,
    ) -> SyncServer:
        health, state = health_service()
        services = (
            open_inference_service(
                models=self.models, predictions=self.predictions, sampler=Sampler(one_in=serving.trace_one_in)
            ),
            model_service(self.publishing, self.index),
            blocking_key_service(self._key_operations, partial(self._kek.run, timeout=_REWRAP_TIMEOUT)),
            health,
            reflection_service((OPEN_INFERENCE, MODEL_SERVICE, KEY_SERVICE, health.name)),
        )
        self._interceptor.require_policies(methods_of(services))
        return build_server(
            source=source,
            services=services,
            interceptors=(self._interceptor,),
            address=address,
            threads=serving.threads,
            max_message_bytes=serving.max_message_bytes,
            health=state,
            lame_duck=lame_duck,
            share_port=shared,
        )


def build_gate(dependencies: Dependencies, *, trust_domain: str, post_quantum: bool = False, workers: int = 1) -> Gate:
    """The gate over the rpcs that this service registers; each of several workers has its part of every quota."""
    counts = GateCounts(dependencies.metrics)
    return Gate(
        policies=PolicyTable.from_descriptors(
            (
                model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
                key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
            ),
            FOREIGN,
        ),
        verifier=TokenVerifier(issuer=f"https://auth.{trust_domain}", audience=AUDIENCE),
        cache=TokenCache(observe=counts.looked_up),
        trust=dependencies.trust,
        peers=PeerVerifier(trust_domain=trust_domain, post_quantum=post_quantum),
        quota=LocalQuota(clock=dependencies.clock, shares=share_out(Shares(), workers)),
        audit=dependencies.audit,
        clock=dependencies.clock,
        observer=counts,
    )


def run(
    settings: InferenceSettings, stack: contextlib.ExitStack, ended: threading.Event, *, seat: Seat | None = None
) -> None:
    """Builds everything, closed by `stack` in reverse order, and serves until `ended`.

    With a seat it is one of several workers: it tells its supervisor that it lives, and shows no page of its own.
    """
    clock, metrics = SystemClock(), Metrics(COMPONENT)
    memory = settings.serving.model_memory_bytes or half_of_memory()
    bound_model_memory(memory // (seat.count if seat is not None else 1))
    source = CertificateSource(settings.identity.directory, metrics=metrics)
    source.start()
    stack.callback(source.close)
    trust = TrustState(staleness=settings.trust.staleness)
    auth = stack.enter_context(contextlib.closing(open_channel("auth", settings.auth_address, source)))
    datasets = stack.enter_context(contextlib.closing(open_channel("datasets", settings.datasets_address, source)))
    file = settings.audit_file if seat is None else seat.own(settings.audit_file)
    audit = stack.enter_context(contextlib.closing(AuditFile(file)))
    thread = KekThread()
    stack.callback(thread.close)
    dependencies = Dependencies(
        source=source,
        trust=trust,
        auth=auth,
        datasets=datasets,
        kek=open_kek(settings, stack, metrics, thread),
        kek_thread=thread,
        audit=audit,
        metrics=metrics,
        clock=clock,
    )
    service = Service(
        dependencies,
        address=settings.listen.address,
        trust_domain=settings.identity.trust_domain,
        repository=open_repository(settings),
        serving=settings.serving,
        staleness=settings.trust.staleness,
        backends=read_backends(settings.backends_file),
        post_quantum=settings.trust.post_quantum,
        seat=seat,
    )
    stack.callback(service.stop)
    feed = TrustFeed(auth, trust, clock)
    stack.callback(feed.close)
    if seat is None:
        page = MetricsServer(metrics, source, settings.listen.metrics_address)
        stack.callback(page.stop)
        page.start()
        tell: Tell = Announcement(service.port, page.port)
    else:
        tell = seat.link(metrics.exposition, ended.set)
    service.start()
    feed.start()
    _tell_heads(AuditHeads(path=file, head=lambda: audit.head), Datasets(datasets, timeout=_CALL_TIMEOUT), ended)
    while not ended.wait(_LOOK_EVERY.total_seconds()):
        tell(ready=service.look(), oldest_run=service.oldest_run())
    _LOGGER.info("draining")


def _tell_heads(heads: AuditHeads, log: Datasets, ended: threading.Event) -> None:
    """Tells the transparency log where the audit stands, until `ended`."""
    told = (ended, lambda body: log.log_entry(AUDIT_HEAD, body))
    threading.Thread(target=heads.run_until, args=told, name="audit-heads", daemon=True).start()
