"""Pulling datasets, every batch proven under the root that a trusted key signed.

If this fails: a trainer trains on rows that the supplier did not sign. The
service checks the same signature and the same root when rows arrive, and the
model's manifest names the root, so the difference is found when a model is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc

from casemate.client.datasets_versions import DatasetVersions
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import StoredDataUnreadable
from casemate.signing.framing import join_rows
from casemate.signing.keys import PublicKey
from casemate.signing.merkle import leaf_hash, verify_inclusion
from casemate.signing.signers import Signer
from casemate.signing.statements import VerifiedManifest, verify_dataset_manifest
from casemate.transport.status import from_rpc_error

PULL_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class PulledBatch:
    """One chunk, proven to be part of the signed root."""

    number: int
    first_ordinal: int
    records: tuple[bytes, ...]


class PulledDataset:
    """A version being read: iterate for its batches, in order.

    Every batch is proven before it is given out. That all of them arrived is
    known only when the iteration ends without an error.
    """

    def __init__(self, manifest: VerifiedManifest, version: int, pieces: Iterator[PulledBatch]) -> None:
        self.manifest = manifest
        self.version = version
        self._pieces = pieces

    @property
    def root(self) -> bytes:
        """The signed RFC 6962 root."""
        return self.manifest.manifest.root

    def __iter__(self) -> Iterator[PulledBatch]:
        return self._pieces

    def records(self) -> list[bytes]:
        """All records, read to the end and so complete."""
        return [record for batch in self for record in batch.records]


class DatasetPulls(DatasetVersions):
    """Pulls of the session's tenant."""

    def pull(self, dataset: str, version: int = 0, *, tenant: str, trusted: Sequence[PublicKey]) -> PulledDataset:
        """Opens a version for reading, its manifest verified against keys that the caller trusts.

        Raises:
            NotFound: there is no such version, or it is not granted.
            SignatureInvalid, PermissionDenied: the manifest is not signed by a trusted key.
        """
        responses = self._stub.PullDataset(
            messages.PullDatasetRequest(dataset=dataset, version=version),
            timeout=PULL_TIMEOUT_SECONDS,
        )
        try:
            description = next(iter(responses)).description
        except StopIteration:
            raise StoredDataUnreadable("the service sent no description") from None
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        promoted_at = description.promoted_at.ToDatetime(tzinfo=UTC)
        signers = {key.key_id: _pinned(key, tenant) for key in trusted}
        verified = verify_dataset_manifest(
            bytes(description.manifest),
            audience=self._session.service_name("datasets"),
            tenant=tenant,
            dataset=dataset,
            resolve=signers.get,
            # The manifest's expiry bounds its upload, not its life: judged when it was promoted.
            now=promoted_at,
        )
        if version not in (0, verified.manifest.version):
            # Genuinely signed, and not what was asked for: an older version in place of this one.
            raise StoredDataUnreadable(f"version {verified.manifest.version} came where {version} was asked for")
        return PulledDataset(verified, verified.manifest.version, _proven(verified, responses))


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


def _proven(verified: VerifiedManifest, responses: Iterator[messages.PullDatasetResponse]) -> Iterator[PulledBatch]:
    """Gives out batches in order, each recomputed from its records and proven under the signed root."""
    manifest = verified.manifest
    number = ordinal = 0
    try:
        for response in responses:
            batch = response.batch
            records = tuple(batch.records)
            leaf = leaf_hash(join_rows(records, encoding=manifest.format))
            if batch.number != number or batch.first_ordinal != ordinal or number >= len(manifest.chunks):
                raise StoredDataUnreadable(f"batch {batch.number} came where {number} was due")
            if leaf != manifest.chunks[number].leaf_hash:
                raise StoredDataUnreadable(f"batch {number} is not the chunk that was signed")
            verify_inclusion(leaf, number, len(manifest.chunks), list(batch.inclusion_proof), manifest.root)
            yield PulledBatch(number, ordinal, records)
            number, ordinal = number + 1, ordinal + len(records)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    if number != len(manifest.chunks) or ordinal != manifest.rows:
        raise StoredDataUnreadable(f"{number} of {len(manifest.chunks)} batches arrived")
