"""Wires the inference service; nothing else does.

`Dependencies` are what a test may bring of its own; `Service` is built the same
way from them in tests and in production.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from casemate.auth.v1 import release_service_pb2, trust_service_pb2
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.counts import GateCounts
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.foreign import FOREIGN
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import PolicyTable
from casemate.gate.core.quota import LocalQuota
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.inference.v1 import model_service_pb2
from casemate.json_log import log_to_stderr
from casemate.keys.v1 import key_service_pb2
from casemate.sealing.provider import load_kek
from casemate.settings import load_settings
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.health import health_service
from casemate.transport.metrics import Metrics, MetricsServer
from casemate.transport.reflection import reflection_service
from casemate.transport.registry import methods_of
from casemate.transport.server import DEFAULT_LAME_DUCK, SyncServer, build_server
from casemate.transport.service_config import idempotent_methods
from services.inference.backends import Backend, Backends, read_backends
from services.inference.blocking_kek import BlockingKek, KekThread
from services.inference.building import Building
from services.inference.catalogue import Catalogue
from services.inference.dependencies import Datasets, Releases
from services.inference.key_wraps import ModelKeyWraps
from services.inference.loader import Loader
from services.inference.models import Models
from services.inference.object_repository import ObjectPlace, open_object_repository
from services.inference.predictions import Predictions
from services.inference.preparation import Preparation, available_cores
from services.inference.publishing import Publishing, PublishLimits
from services.inference.repository import Repository
from services.inference.servicers import MODEL_SERVICE, OPEN_INFERENCE, model_service, open_inference_service
from services.inference.settings import InferenceSettings, ServingSettings
from services.inference.streams import Streams
from services.inference.tracing import Sampler
from services.inference.triton_metrics import TritonMetrics
from services.inference.trust_view import TrustView
from services.inference.validation import Limits
from services.inference.vault import Vault
from services.inference.watcher import Watcher
from services.keys.blocking import KEY_SERVICE, blocking_key_service
from services.keys.operations import KeyOperations

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc

    from casemate.gate.core.audit import AuditSink
    from casemate.sealing.kek import KeyEncryptionKey
    from services.inference.repository import Store

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
    ) -> None:
        trust = TrustView(dependencies.trust)
        self._serving: bool | None = None
        self._trust, self._staleness = dependencies.trust, staleness
        self._metrics, self._clock = dependencies.metrics, dependencies.clock
        self._kek = BlockingKek(dependencies.kek, timeout=_KEK_TIMEOUT, thread=dependencies.kek_thread)
        self._key_operations = KeyOperations(kek=dependencies.kek, stores=[ModelKeyWraps(repository)])
        vault = Vault(repository=repository, keys=self._kek)
        self.catalogue = Catalogue(trust)
        self._backends = Backends(
            backends or {}, source=dependencies.source, max_message_bytes=serving.max_message_bytes
        )
        build = Building(self._backends)
        prepare = Preparation(instances=available_cores())
        loader = Loader(
            vault=vault,
            trust=trust,
            audience=f"{AUDIENCE}.{trust_domain}",
            build=build,
            prepare=prepare,
            integrity_failed=lambda: dependencies.metrics.increment("integrity_failures_total"),
        )
        self.watcher = self._watcher(trust, loader, serving)
        self.publishing = Publishing(
            trust=trust,
            releases=Releases(dependencies.auth, timeout=_CALL_TIMEOUT),
            datasets=Datasets(dependencies.datasets, timeout=_CALL_TIMEOUT),
            vault=vault,
            watcher=self.watcher,
            build=build,
            prepare=prepare,
            audience=f"{AUDIENCE}.{trust_domain}",
            clock=dependencies.clock,
            limits=PublishLimits(version_bytes=serving.max_model_bytes, concurrent=serving.uploads),
        )
        self.models = self._models(trust, serving)
        self.streams = Streams(limit=max(1, serving.threads // 2), idle=serving.stream_idle)
        self.predictions = Predictions(
            catalogue=self.catalogue,
            limits=Limits(reply_bytes=serving.max_message_bytes),
            streams=self.streams,
            deadline=serving.deadline,
        )
        dependencies.metrics.registry.register(TritonMetrics(self.catalogue))
        gate = build_gate(dependencies, trust_domain=trust_domain, post_quantum=post_quantum)
        self._interceptor = GateInterceptor(gate, streams=max(1, serving.threads * 3 // 4))
        self._server = self._build_server(dependencies.source, address, serving, lame_duck)

    def _models(self, trust: TrustView, serving: ServingSettings) -> Models:
        return Models(
            trust=trust,
            catalogue=self.catalogue,
            watcher=self.watcher,
            publishing=self.publishing,
            clock=self._clock,
            version=version("casemate"),
            policies=serving.versions,
        )

    def _watcher(self, trust: TrustView, loader: Loader, serving: ServingSettings) -> Watcher:
        return Watcher(
            trust=trust,
            loader=loader,
            catalogue=self.catalogue,
            policies=serving.versions,
            retry=serving.reload_retry,
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
        self, source: CertificateSource, address: str, serving: ServingSettings, lame_duck: timedelta
    ) -> SyncServer:
        health, state = health_service()
        services = (
            open_inference_service(
                models=self.models, predictions=self.predictions, sampler=Sampler(one_in=serving.trace_one_in)
            ),
            model_service(self.publishing),
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
        )


def build_gate(dependencies: Dependencies, *, trust_domain: str, post_quantum: bool = False) -> Gate:
    """The gate over the rpcs that this service registers."""
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
        quota=LocalQuota(clock=dependencies.clock),
        audit=dependencies.audit,
        clock=dependencies.clock,
        observer=counts,
    )


def main(environment: Mapping[str, str]) -> None:
    """Runs the service until SIGTERM or SIGINT, then drains.

    Raises:
        ConfigurationError: the process cannot start as configured.
    """
    log_to_stderr()
    settings = load_settings(InferenceSettings, environment, component=COMPONENT)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.ExitStack() as stack:
        run(settings, stack, ended)


def run(settings: InferenceSettings, stack: contextlib.ExitStack, ended: threading.Event) -> None:
    """Builds everything, closed by `stack` in reverse order, and serves until `ended`."""
    clock, metrics = SystemClock(), Metrics(COMPONENT)
    source = CertificateSource(settings.identity.directory, metrics=metrics)
    source.start()
    stack.callback(source.close)
    trust = TrustState(staleness=settings.trust.staleness)
    auth = stack.enter_context(contextlib.closing(_channel("auth", settings.auth_address, source)))
    datasets = stack.enter_context(contextlib.closing(_channel("datasets", settings.datasets_address, source)))
    audit = stack.enter_context(contextlib.closing(AuditFile(settings.audit_file)))
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
    )
    stack.callback(service.stop)
    page = MetricsServer(metrics, source, settings.listen.metrics_address)
    stack.callback(page.stop)
    feed = TrustFeed(auth, trust, clock)
    stack.callback(feed.close)
    page.start()
    service.start()
    feed.start()
    announced = False
    while not ended.wait(_LOOK_EVERY.total_seconds()):
        if service.look() and not announced:
            announced = True
            _LOGGER.info("ready: rpcs on port %d, metrics on port %d", service.port, page.port)
    _LOGGER.info("draining")


def open_kek(
    settings: InferenceSettings, stack: contextlib.ExitStack, metrics: Metrics, thread: KekThread
) -> KeyEncryptionKey:
    """The key-encryption key, opened in its thread until `stack` ends.

    Raises:
        ConfigurationError: as `load_kek`.
    """
    failed = metrics.counting("kek_reload_failed_total")
    opening = load_kek(settings.kek, clock=SystemClock(), reload_failed=failed)
    kek = thread.run(opening.__aenter__(), timeout=_KEK_TIMEOUT)
    stack.callback(lambda: thread.run(opening.__aexit__(None, None, None), timeout=_KEK_TIMEOUT))
    return kek


def open_repository(settings: InferenceSettings) -> Store:
    """Where the sealed models lie: a folder or a bucket.

    Raises:
        ConfigurationError: a bucket, and no S3 client is installed.
    """
    place = settings.repository
    if isinstance(place, ObjectPlace):
        return open_object_repository(place, address=settings.repository_endpoint)
    return Repository(place)


def _channel(service: str, address: str, source: CertificateSource) -> RotatingChannel:
    return RotatingChannel(
        target=address,
        service_name=service,
        source=source,
        idempotent_methods=idempotent_methods(
            release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"],
            trust_service_pb2.DESCRIPTOR.services_by_name["TrustService"],
            dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
            log_service_pb2.DESCRIPTOR.services_by_name["LogService"],
        ),
    )
