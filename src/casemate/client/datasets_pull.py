"""Pulling datasets, every batch proven under the root that a trusted key signed.

If this fails: a trainer trains on rows that the supplier did not sign. The
service checks the same signature and the same root when rows arrive, and the
model's manifest names the root, so the difference is found when a model is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import grpc

from casemate.client.datasets_versions import DatasetVersions
from casemate.client.proven_rows import require_signed_rows
from casemate.client.reading import Cursor, PulledBatch, PulledDataset
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import StoredDataUnreadable
from casemate.signing.batch_order import BatchOrder
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.export_receipt import VerifiedExportReceipt, numbers_sha256, verify_export_receipt
from casemate.signing.keys import PublicKey
from casemate.signing.merkle import verify_inclusion
from casemate.signing.statements import VerifiedManifest
from casemate.transport.status import from_rpc_error

PULL_TIMEOUT_SECONDS = 3600.0

_WHOLE = BatchOrder()


class DatasetPulls(DatasetVersions):
    """Pulls of the session's tenant."""

    def pull(
        self,
        dataset: str,
        version: int = 0,
        *,
        tenant: str,
        trusted: Sequence[PublicKey],
        label: str = "",
        order: BatchOrder = _WHOLE,
        log_key: str | None = None,
    ) -> PulledDataset:
        """Opens a version for reading, its manifest verified against keys that the caller trusts.

        Args:
            dataset: the dataset.
            version: its number; zero: what the label names, or the newest where none is given.
            tenant: whose it is.
            trusted: keys of suppliers.
            label: instead of a version. Which one it names is the service's word; the log has each move.
            order: which shard, in which order, from where on.
            log_key: the log's key, that the receipt must be signed with; what the service says if not given.

        Raises:
            NotFound: there is no such version, or it is not granted.
            InvalidRequest: the order asks for what there is not.
            SignatureInvalid, PermissionDenied: the manifest is not signed by a trusted key.
        """
        responses = self._stub.PullDataset(
            messages.PullDatasetRequest(
                dataset=dataset,
                version=version,
                label=label,
                shard=order.shard,
                shards=order.shards,
                shuffle_seed=order.shuffle_seed,
                position=order.position,
            ),
            timeout=PULL_TIMEOUT_SECONDS,
        )
        try:
            first = next(iter(responses), None)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if first is None or first.WhichOneof("piece") != "description":
            raise StoredDataUnreadable("the service sent no description")
        verified = self.verified(first.description, tenant=tenant, dataset=dataset, trusted=trusted)
        if version not in (0, verified.manifest.version):
            # Genuinely signed, and not what was asked for: an older version in place of this one.
            raise StoredDataUnreadable(f"version {verified.manifest.version} came where {version} was asked for")
        reading = _Reading(verified, order, responses, log_key=log_key, caller=self._session.caller)
        reading.pulled = PulledDataset(verified, order, reading.batches())
        return reading.pulled

    def resume(
        self, cursor: Cursor, *, tenant: str, trusted: Sequence[PublicKey], log_key: str | None = None
    ) -> PulledDataset:
        """Goes on where a cursor says: exactly the batches that were not given out.

        Raises:
            StoredDataUnreadable: the version is another one than the cursor's.
            NotFound, SignatureInvalid, PermissionDenied: by `pull`.
        """
        pulled = self.pull(
            cursor.dataset, cursor.version, tenant=tenant, trusted=trusted, order=cursor.order, log_key=log_key
        )
        if pulled.root != cursor.root:
            raise StoredDataUnreadable("the version's root is not the cursor's")
        return pulled


class _Reading:
    """One call being read: what must come is computed from the signed manifest, and held against what comes."""

    def __init__(
        self,
        verified: VerifiedManifest,
        order: BatchOrder,
        responses: Iterator[messages.PullDatasetResponse],
        *,
        log_key: str | None,
        caller: str,
    ) -> None:
        self._verified = verified
        self._order = order
        self._responses = responses
        self._log_key = log_key
        self._log = f"{verified.manifest.audience}/log"
        self._caller = caller
        self._numbers = order.numbers(verified.manifest.root, len(verified.manifest.chunks))
        self.pulled: PulledDataset | None = None

    def batches(self) -> Iterator[PulledBatch]:
        """The batches in order, each recomputed from its rows and proven under the signed root."""
        chunks = self._verified.manifest.chunks
        ordinals = list(accumulate((chunk.rows for chunk in chunks), initial=0))
        rows = 0
        try:
            for number in self._numbers:
                piece = next(self._responses, None)
                if piece is None or piece.WhichOneof("piece") != "batch":
                    raise StoredDataUnreadable(f"batch {number} did not come: the shard is not complete")
                batch = self._proven(number, ordinals[number], piece.batch)
                rows += len(batch.records)
                yield batch
            last, more = next(self._responses, None), next(self._responses, None)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if last is None or last.WhichOneof("piece") != "receipt" or more is not None:
            raise StoredDataUnreadable("more came than was signed, or no receipt")
        if self.pulled is not None:
            self.pulled.receipt = self._receipt(last.receipt, rows)

    def _proven(self, number: int, ordinal: int, batch: messages.Batch) -> PulledBatch:
        manifest = self._verified.manifest
        chunk, records = manifest.chunks[number], tuple(batch.records)
        if (batch.number, batch.first_ordinal) != (number, ordinal):
            raise StoredDataUnreadable(f"batch {batch.number} came where {number} was due")
        try:
            require_signed_rows(records, chunk, encoding=manifest.format)
        except StoredDataUnreadable as error:
            raise StoredDataUnreadable(f"batch {number}: {error}") from error
        proof = list(batch.inclusion_proof)
        verify_inclusion(chunk.leaf_hash, number, len(manifest.chunks), proof, manifest.root)
        return PulledBatch(number, ordinal, records)

    def _receipt(self, message: messages.ExportReceipt, rows: int) -> VerifiedExportReceipt:
        """The receipt, if it says what was received."""
        log, key = parse_verification_key(self._log_key or message.log_key)
        if log != self._log:
            raise StoredDataUnreadable("the receipt's key is not that of this service's log")
        verified = verify_export_receipt(bytes(message.receipt), log=log, public_key=key)
        said, manifest, order = verified.receipt, self._verified.manifest, self._order
        digest = self._verified.payload_sha256.hex()
        read = (manifest.tenant, manifest.dataset, manifest.version, manifest.root.hex(), digest)
        if (said.tenant, said.dataset, said.version, said.root, said.manifest_sha256) != read:
            raise StoredDataUnreadable("the receipt is another version's")
        asked = (order.shard, order.shards, order.shuffle_seed, order.position)
        given = (len(self._numbers), numbers_sha256(self._numbers), rows)
        if (said.shard, said.shards, said.shuffle_seed, said.position) != asked:
            raise StoredDataUnreadable("the receipt is another reading's")
        if said.caller != self._caller:
            raise StoredDataUnreadable("the receipt is another caller's")
        if (said.batches, said.batches_sha256, said.rows) != given:
            raise StoredDataUnreadable("the receipt is not about the batches that came")
        return verified
