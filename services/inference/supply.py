"""Wires the way of models into this process: from publishers, and from the repository by the feed's word.

`app` calls it; nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from services.inference.catalogue import Catalogue
from services.inference.dependencies import Datasets, Releases
from services.inference.index import Index
from services.inference.loader import Loader
from services.inference.publishing import Publishing, PublishLimits
from services.inference.streams import Streams
from services.inference.training_data import TrainingData
from services.inference.watcher import Watcher

if TYPE_CHECKING:
    from services.inference.app import Dependencies
    from services.inference.building import Build
    from services.inference.preparation import Preparation
    from services.inference.settings import ServingSettings
    from services.inference.trust_view import TrustView
    from services.inference.vault import Vault

_CALL_TIMEOUT = timedelta(seconds=10)
_JUDGE_TIMEOUT = timedelta(seconds=2)  # every load waits for it


@dataclass(frozen=True, slots=True)
class Supply:
    """The way of models into this process: from publishers and from the repository."""

    catalogue: Catalogue
    watcher: Watcher
    uploads: Streams
    publishing: Publishing
    index: Index


def build_supply(
    dependencies: Dependencies,
    *,
    trust: TrustView,
    vault: Vault,
    build: Build,
    prepare: Preparation,
    audience: str,
    serving: ServingSettings,
) -> Supply:
    """What takes models in, and what keeps those loaded that the feed names."""
    catalogue = Catalogue(trust)
    training = TrainingData(Datasets(dependencies.datasets, timeout=_JUDGE_TIMEOUT))
    loader = Loader(
        vault=vault,
        trust=trust,
        training=training,
        audience=audience,
        build=build,
        prepare=prepare,
        integrity_failed=lambda: dependencies.metrics.increment("integrity_failures_total"),
    )
    watcher = Watcher(
        trust=trust,
        loader=loader,
        training=training,
        catalogue=catalogue,
        policies=serving.versions,
        retry=serving.reload_retry,
        patience=serving.load_patience,
    )
    # All files of an upload are held in memory, so there are few places: the last is kept for another tenant.
    uploads = Streams(limit=serving.uploads, kept=int(serving.uploads > 1), idle=serving.upload_idle)
    publishing = Publishing(
        trust=trust,
        releases=Releases(dependencies.auth, timeout=_CALL_TIMEOUT),
        datasets=Datasets(dependencies.datasets, timeout=_CALL_TIMEOUT),
        vault=vault,
        watcher=watcher,
        build=build,
        prepare=prepare,
        audience=audience,
        clock=dependencies.clock,
        limits=PublishLimits(version_bytes=serving.max_model_bytes),
        uploads=uploads,
    )
    index = Index(trust=trust, catalogue=catalogue, watcher=watcher, clock=dependencies.clock)
    return Supply(catalogue, watcher, uploads, publishing, index)
