"""Wires the servicers of datasets to what they stand on.

If this fails: a service does not start, or its rpcs judge by another trust, clock or key than its gate does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from casemate.datasets.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from casemate.datasets.v1.log_service_pb2_grpc import add_LogServiceServicer_to_server
from casemate.sealing.authority_rows import AuthorityKeyFile
from casemate.signing.checkpoint import verification_key
from casemate.transport.registry import registered
from services.datasets.catalogue_servicer import Catalogue
from services.datasets.chunk_messages import parsing_chunks_in_place
from services.datasets.dataset_servicer import DatasetServicer
from services.datasets.listing import DatasetListing
from services.datasets.log_servicer import LogServicer
from services.datasets.opening import log_origin
from services.datasets.pull import Reader
from services.datasets.push import Intake
from services.datasets.signer_report import SignerReport
from services.datasets.versions import Versions
from services.keys.operations import KeyOperations
from services.keys.servicer import key_service

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.gate.core.trust import TrustState
    from casemate.signing.keys import SigningKey
    from casemate.signing.signers import Signer
    from casemate.signing.statements import SignerResolver
    from casemate.transport.registry import RegisteredService
    from services.datasets.checkpoints import Checkpoints
    from services.datasets.exports import Exports
    from services.datasets.opening import Stores
    from services.datasets.settings import DatasetsSettings
    from services.datasets.shred import Shredder

AUDIENCE: Final = "datasets"
"""Tokens name it; manifests name it with the trust domain behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What the rpcs stand on. `log_key` signs checkpoints and receipts."""

    settings: DatasetsSettings
    stores: Stores
    log_key: SigningKey
    trust: TrustState
    clock: Clock
    shredder: Shredder
    exports: Exports
    checkpoints: Checkpoints


def build_services(footing: Footing) -> list[RegisteredService]:
    """The services with methods of our own: datasets, log and keys."""
    settings, stores = footing.settings, footing.stores
    resolve = resolver(settings, footing.trust)
    audience = f"{AUDIENCE}.{settings.identity.trust_domain}"
    intake = Intake(audience=audience, store=stores.versions, keys=stores.keys, resolve=resolve, clock=footing.clock)
    datasets = DatasetServicer(
        intake=intake,
        catalogue=_catalogue(footing, resolve, service=audience),
        exports=footing.exports,
        shredder=footing.shredder,
        log_key=verification_key(log_origin(settings.identity.trust_domain), footing.log_key.public),
    )
    operations = KeyOperations(kek=stores.kek, stores=[stores.keys, AuthorityKeyFile(settings.authority_key)])
    log = LogServicer(log=stores.log, lineage=stores.lineage, checkpoints=footing.checkpoints)
    return [
        parsing_chunks_in_place(registered(add_DatasetServiceServicer_to_server, datasets)),
        registered(add_LogServiceServicer_to_server, log),
        key_service(operations),
    ]


def resolver(settings: DatasetsSettings, trust: TrustState) -> SignerResolver:
    """Finds signers as the trust feed has them now."""

    def resolve(key_id: str) -> Signer | None:
        signer = trust.current.signers.get(key_id)
        if signer is None or not settings.unsafe_accept_pkcs1:
            return signer
        return replace(signer, public_key=signer.public_key.unsafe_also_pkcs1())

    return resolve


def _catalogue(footing: Footing, resolve: SignerResolver, *, service: str) -> Catalogue:
    stores = footing.stores
    reader = Reader(
        audience=service,
        store=stores.versions,
        shreds=stores.shreds,
        keys=stores.keys,
        resolve=resolve,
        alarms=stores.alarms,
    )
    versions = Versions(reader=reader, labels=stores.labels, trust=footing.trust, clock=footing.clock)
    return Catalogue(
        service=service,
        reader=reader,
        store=stores.versions,
        versions=versions,
        listing=DatasetListing(store=stores.versions, versions=versions, resolve=resolve),
        labels=stores.labels,
        lineage=stores.lineage,
        reports=SignerReport(
            pool=stores.pool, log=stores.log, versions=stores.versions, lineage=stores.lineage, resolve=resolve
        ),
        schedules=stores.schedules,
        trust=footing.trust,
    )
