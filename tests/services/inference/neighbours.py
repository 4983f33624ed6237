"""What inference talks to, in a test: trust that is set by hand, and small real servers for auth and datasets."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc

from casemate.auth.v1 import release_service_pb2, release_service_pb2_grpc
from casemate.clock import SystemClock
from casemate.datasets.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    log_service_pb2,
    log_service_pb2_grpc,
)
from casemate.gate.core.records import Grant, Release, ReleasedVersion, VerificationKey
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.signing.signers import Signer
from tests.support.authority import TRUST_DOMAIN

EPOCH = "epoch"


class Trust:
    """Writes a TrustState as the feed would."""

    def __init__(self) -> None:
        self.state = TrustState(staleness=timedelta(hours=1), sensitive_staleness=timedelta(hours=1))
        self._sequence = 1

    def begin(self, *, keys: Sequence[VerificationKey], grants: Sequence[Grant], signers: Sequence[Signer]) -> None:
        self.state.apply_snapshot(
            TrustSnapshot.build(
                epoch=EPOCH,
                sequence=1,
                issuer=f"https://auth.{TRUST_DOMAIN}",
                keys=keys,
                grants=grants,
                signers=signers,
            )
        )
        self.state.heard(SystemClock().monotonic())

    def change(self, *records: object) -> None:
        self._sequence += 1
        self.state.apply_delta(records, epoch=EPOCH, sequence=self._sequence)

    def release(self, tenant: str, model: str, version: ReleasedVersion) -> Release:
        before = self.state.current.releases.get((tenant, model))
        versions = before.versions if before is not None else ()
        if version.number not in {known.number for known in versions}:
            versions = (*versions, version)
        release = Release(tenant=tenant, model=model, versions=versions, labels=before.labels if before else {})
        self.change(release)
        return release


@dataclass
class Auth(release_service_pb2_grpc.ReleaseServiceServicer):
    """Records the first release of each number; tells the feed, when it may."""

    trust: Trust
    recorded: list[release_service_pb2.RecordReleaseRequest] = field(default_factory=list)
    claimed: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    claims: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    tells: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.tells.set()

    def RecordRelease(self, request, context):  # noqa: N802  # the protocol's name
        number = (request.tenant, request.model, request.version.number)
        if self.claimed.setdefault(number, request.version.manifest_sha256) != request.version.manifest_sha256:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "taken")
        self.claims.release()
        self.tells.wait(10)
        self.recorded.append(request)
        version = request.version
        self.trust.release(
            request.tenant,
            request.model,
            ReleasedVersion(
                number=version.number,
                manifest_sha256=version.manifest_sha256,
                signer_key_id=version.signer_key_id,
                recorded_at=datetime.now(UTC),
            ),
        )
        return release_service_pb2.RecordReleaseResponse()


@dataclass
class Roots(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Knows some dataset roots, of which some are quarantined; or does not answer."""

    promoted: set[bytes] = field(default_factory=set)
    quarantined: set[bytes] = field(default_factory=set)
    silent: bool = False

    def CheckRoots(self, request, context):  # noqa: N802
        if self.silent:
            context.abort(grpc.StatusCode.UNAVAILABLE, "out")
        return dataset_service_pb2.CheckRootsResponse(
            refused=[root for root in request.roots if root not in self.promoted - self.quarantined],
            quarantined=[root for root in request.roots if root in self.quarantined],
        )


@dataclass
class Log(log_service_pb2_grpc.LogServiceServicer):
    """Keeps what is appended, a release once, as datasets does."""

    entries: list[dict[str, object]] = field(default_factory=list)

    def AppendEntry(self, request, _context):  # noqa: N802
        entry = {"kind": request.kind, **json.loads(request.body)}
        if request.kind != "release" or entry not in self.entries:
            self.entries.append(entry)
            return log_service_pb2.AppendEntryResponse(index=len(self.entries) - 1)
        return log_service_pb2.AppendEntryResponse(index=self.entries.index(entry))
