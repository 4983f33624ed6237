"""What there is of datasets: versions described, and shredded.

If this fails: a caller takes another version, or a receipt of another version, for the one that was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc

from casemate.client.session import Session
from casemate.client.timestamps import parse_timestamp
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.errors import StoredDataUnreadable
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.keys import PublicKey
from casemate.signing.shred_receipt import ShredReceipt, verify_shred_receipt
from casemate.signing.signers import Signer
from casemate.signing.statements import VerifiedManifest, verify_dataset_manifest
from casemate.transport.status import from_rpc_error


@dataclass(frozen=True, slots=True)
class ShreddedVersion:
    """A version that nothing opens any more, with the proof of it.

    Attributes:
        receipt: what the log's key signed.
        envelope: the receipt as signed, for keeping.
        log_key: the key that verifies it, `name+hash+base64`: the caller's, or as the service named it.
    """

    receipt: ShredReceipt
    envelope: bytes
    log_key: str


class DatasetVersions:
    """The versions of the datasets of the session's tenant."""

    def __init__(self, session: Session, *, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._stub = DatasetServiceStub(session.channel("datasets"))

    def describe(self, dataset: str, version: int = 0, *, label: str = "") -> messages.GetVersionResponse:
        """Describes a promoted version; zero is what the label names, or the newest where none is given.

        All of it is the service's word; `pull` verifies the manifest.

        Raises:
            NotFound: there is none, or it is not granted.
            StoredDataUnreadable: it is another version, or a moment is none.
        """
        try:
            found = self._stub.GetVersion(messages.GetVersionRequest(dataset=dataset, version=version, label=label))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if version not in (0, found.version):
            raise StoredDataUnreadable(f"version {found.version} came where {version} was asked for")
        parse_timestamp(found.promoted_at, "promoted_at")
        parse_timestamp(found.shredded_at, "shredded_at")
        return found

    def verified(
        self, described: messages.GetVersionResponse, *, tenant: str, dataset: str, trusted: Sequence[PublicKey]
    ) -> VerifiedManifest:
        """The manifest that a description carries, if a key that the caller trusts signed it for this dataset.

        Raises:
            SignatureInvalid, PermissionDenied, InvalidRequest: it is not so.
            StoredDataUnreadable: a moment is none.
        """
        signers = {key.key_id: _pinned(key, tenant) for key in trusted}
        return verify_dataset_manifest(
            bytes(described.manifest),
            audience=self._session.service_name("datasets"),
            tenant=tenant,
            dataset=dataset,
            resolve=signers.get,
            # The manifest's expiry bounds its upload, not its life: judged when it was promoted.
            now=parse_timestamp(described.promoted_at, "promoted_at"),
        )

    def set_label(self, dataset: str, label: str, version: int, *, expected: int) -> dict[str, int]:
        """Has a label name a version (zero: none) if it names the expected one now (zero: none); gives all labels.

        Raises:
            NotFound: the version cannot be read, or moving labels is not granted.
            Conflict: it names another version than expected: look again.
        """
        request = messages.SetLabelRequest(dataset=dataset, label=label, version=version, expected_version=expected)
        try:
            return dict(self._stub.SetLabel(request).labels)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def labels(self, dataset: str) -> dict[str, int]:
        """The labels that were set, and the versions that they name."""
        try:
            return dict(self._stub.ListLabels(messages.ListLabelsRequest(dataset=dataset)).labels)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def lineage(self, dataset: str, version: int = 0, *, label: str = "") -> messages.GetLineageResponse:
        """Where a version comes from, and which models were trained on it.

        Raises:
            NotFound: there is no such version, or it is not granted.
        """
        try:
            return self._stub.GetLineage(messages.GetLineageRequest(dataset=dataset, version=version, label=label))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def signed_since(self, key_id: str, since: datetime | None = None) -> Iterator[messages.ReportSignerResponse]:
        """What a key signed from a moment on (none: its declared compromise), and what was trained on it.

        Raises:
            NotFound: no supplier has that key.
            InvalidRequest: no moment is given and no compromise is declared.
            StoredDataUnreadable: a moment is none.
        """
        request = messages.ReportSignerRequest(key_id=key_id)
        if since is not None:
            request.since.FromDatetime(since)
        try:
            for found in self._stub.ReportSigner(request):
                parse_timestamp(found.promoted_at, "promoted_at")
                yield found
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def croissant(self, dataset: str, version: int = 0, *, label: str = "") -> bytes:
        """The Croissant 1.1 JSON-LD of a version.

        Raises:
            NotFound: there is no such version, or it is not granted.
        """
        request = messages.GetCroissantRequest(dataset=dataset, version=version, label=label)
        try:
            return bytes(self._stub.GetCroissant(request).json_ld)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def set_retention(self, dataset: str, *, keep_versions: int = 0, keep_for: timedelta | None = None) -> int:
        """Sets how long versions are kept; what is beyond is shredded. Gives the log's entry.

        Args:
            dataset: the dataset.
            keep_versions: so many of the newest; zero: any number.
            keep_for: each so long, labelled or not; none: without end.

        Raises:
            NotFound: it is not granted.
            InvalidRequest: the time is not from one second to a hundred years.
        """
        request = messages.SetRetentionRequest(dataset=dataset, keep_versions=keep_versions)
        if keep_for is not None:
            request.keep_for.FromTimedelta(keep_for)
        try:
            return int(self._stub.SetRetention(request).log_index)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def shred(self, dataset: str, version: int, *, log_key: str | None = None) -> ShreddedVersion:
        """Destroys the data key of a version, for ever; repeated, it gives the same receipt.

        Args:
            dataset: the dataset.
            version: its number.
            log_key: the log's key, that the receipt must be signed with. What the service says if not given, which
                is its word: compare it with the log key that you know.

        Raises:
            NotFound: there is no such version, or it is not granted.
            Unavailable: the service will finish what was begun; ask again for the receipt.
            SignatureInvalid: the receipt is not signed with that key.
            StoredDataUnreadable: the receipt is another version's, another tenant's, or another log's.
        """
        request = messages.ShredVersionRequest(dataset=dataset, version=version)
        try:
            answer = self._stub.ShredVersion(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        used = log_key or answer.log_key
        log, key = parse_verification_key(used)
        if log != f"{self._session.service_name('datasets')}/log":
            raise StoredDataUnreadable("the receipt's key is not that of this service's log")
        verified = verify_shred_receipt(bytes(answer.receipt), log=log, public_key=key)
        if (verified.receipt.dataset, verified.receipt.version) != (dataset, version):
            raise StoredDataUnreadable("the receipt is another version's")
        if self._session.caller.split("/")[3:5] != ["t", verified.receipt.tenant]:
            raise StoredDataUnreadable("the receipt is another tenant's")
        return ShreddedVersion(verified.receipt, bytes(answer.receipt), used)


def _pinned(key: PublicKey, tenant: str) -> Signer:
    """A signer that the caller vouches for: its window was judged by the service at log time."""
    always = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return Signer(
        key_id=key.key_id,
        tenant=tenant,
        role="supplier",
        public_key=key,
        valid_from=always[0],
        valid_until=always[1],
    )
