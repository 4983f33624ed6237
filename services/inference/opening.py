"""Opens what the service's settings name: its key-encryption key, its repository, its channels."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.auth.v1 import release_service_pb2, trust_service_pb2
from casemate.clock import SystemClock
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.sealing.provider import load_kek
from casemate.transport.channel import RotatingChannel
from casemate.transport.service_config import idempotent_methods
from services.inference.object_repository import ObjectPlace, open_object_repository
from services.inference.repository import Repository

if TYPE_CHECKING:
    import contextlib

    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.transport.certificates import CertificateSource
    from casemate.transport.metrics import Metrics
    from services.inference.blocking_kek import KekThread
    from services.inference.repository import Store
    from services.inference.settings import InferenceSettings

_KEK_TIMEOUT = timedelta(seconds=10)


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


def open_channel(service: str, address: str, source: CertificateSource) -> RotatingChannel:
    """A channel to another of our services."""
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
