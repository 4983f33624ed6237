"""What this service asks of auth and datasets, in its own words.

The channels prove the names of the services behind them; this one proves its
own by its certificate, so no token is sent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc

from casemate.auth.v1 import release_service_pb2, trust_pb2
from casemate.auth.v1.release_service_pb2_grpc import ReleaseServiceStub
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.datasets.v1.log_service_pb2_grpc import LogServiceStub
from casemate.errors import FailedPrecondition, Reason
from casemate.transport.status import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from services.inference.repository import Slot


class Releases:
    """Auth's record of which versions may be served."""

    def __init__(self, channel: grpc.Channel, *, timeout: timedelta) -> None:
        self._stub = ReleaseServiceStub(channel)
        self._timeout = timeout.total_seconds()

    def record(self, slot: Slot, *, manifest_sha256: bytes, signer_key_id: str) -> None:
        """Records a version; recording the same one again has no further effect.

        Raises:
            Conflict: another version has the number, or it is not the next one.
            Unavailable: auth does not answer.
        """
        version = trust_pb2.ReleasedVersion(  # auth's clock says when
            number=slot.number, manifest_sha256=manifest_sha256, signer_key_id=signer_key_id
        )
        request = release_service_pb2.RecordReleaseRequest(tenant=slot.tenant, model=slot.model, version=version)
        try:
            self._stub.RecordRelease(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


class Datasets:
    """Datasets' word on dataset roots, and the transparency log."""

    def __init__(self, channel: grpc.Channel, *, timeout: timedelta) -> None:
        self._datasets = DatasetServiceStub(channel)
        self._log = LogServiceStub(channel)
        self._timeout = timeout.total_seconds()

    def require_roots(self, tenant: str, roots: Sequence[bytes]) -> None:
        """Returns when every root is that of a promoted version of the tenant.

        Raises:
            FailedPrecondition: reason DATASET_UNKNOWN: one is not, or is quarantined.
            Unavailable: datasets does not answer.
        """
        request = dataset_service_pb2.CheckRootsRequest(tenant=tenant, roots=roots)
        try:
            refused = self._datasets.CheckRoots(request, timeout=self._timeout).refused
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if refused:
            raise FailedPrecondition(f"{len(refused)} dataset roots are refused", reason=Reason.DATASET_UNKNOWN)

    def quarantined(self, tenant: str, roots: Sequence[bytes]) -> frozenset[bytes]:
        """Those of the roots that no signature vouches for any more, at most 1,000.

        Raises:
            Unavailable: datasets does not answer.
        """
        request = dataset_service_pb2.CheckRootsRequest(tenant=tenant, roots=roots)
        try:
            return frozenset(self._datasets.CheckRoots(request, timeout=self._timeout).quarantined)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def log_release(
        self, slot: Slot, *, manifest_sha256: bytes, signer_key_id: str, dataset_roots: Sequence[bytes]
    ) -> int:
        """Has the release in the log, once, with the roots that it was trained on; its index there.

        Raises:
            Unavailable: datasets does not answer.
        """
        body = {
            "dataset_roots": [root.hex() for root in dataset_roots],
            "manifest_sha256": manifest_sha256.hex(),
            "model": slot.model,
            "number": slot.number,
            "signer_key_id": signer_key_id,
            "tenant": slot.tenant,
        }
        return self.log_entry("release", body)

    def log_entry(self, kind: str, body: dict[str, object]) -> int:
        """Appends an entry to the log; its index there.

        Raises:
            Unavailable: datasets does not answer.
        """
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        request = log_service_pb2.AppendEntryRequest(kind=kind, body=text.encode())
        try:
            return int(self._log.AppendEntry(request, timeout=self._timeout).index)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
