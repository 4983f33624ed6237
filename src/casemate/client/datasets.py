"""Pushing signed datasets, and pulling proven ones.

If this fails: a trainer trains on rows that the supplier did not sign. The
service checks the same signature and the same root when rows arrive, and the
model's manifest names the root, so the difference is found when a model is published.
"""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import grpc

from casemate.client.chunks import DEFAULT_CHUNK_BYTES, RecordSource, cut, digest
from casemate.client.session import Session
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.errors import NotFound, StoredDataUnreadable
from casemate.signing.keys import PublicKey, SigningKey
from casemate.signing.merkle import leaf_hash, root, verify_inclusion
from casemate.signing.shred_receipt import ShredReceipt, parse_verification_key, verify_shred_receipt
from casemate.signing.signers import Signer
from casemate.signing.statements import (
    Column,
    DatasetManifest,
    VerifiedManifest,
    sign_dataset_manifest,
    verify_dataset_manifest,
)
from casemate.transport.status import from_rpc_error

MANIFEST_LIFETIME = timedelta(hours=24)
"""How long a signed manifest may be used to upload."""

CHUNKS_IN_FLIGHT = 8
"""Chunks sent and not yet acknowledged: bounds what a crash repeats."""

PULL_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class PushedVersion:
    """A version that is now readable."""

    dataset: str
    version: int
    root: bytes
    rows: int
    log_index: int


@dataclass(frozen=True, slots=True)
class ShreddedVersion:
    """A version that nothing opens any more, with the proof of it.

    Attributes:
        receipt: what the log's key signed.
        envelope: the receipt as signed, for keeping.
        log_key: the key that verifies it, `name+hash+base64`, as the service named it.
    """

    receipt: ShredReceipt
    envelope: bytes
    log_key: str


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


class Datasets:
    """The datasets of the session's tenant."""

    def __init__(self, session: Session, *, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._stub = DatasetServiceStub(session.channel("datasets"))

    def describe(self, dataset: str, version: int = 0) -> messages.GetVersionResponse:
        """Describes a promoted version; zero is the latest.

        Raises:
            NotFound: there is none, or it is not granted.
        """
        try:
            return self._stub.GetVersion(messages.GetVersionRequest(dataset=dataset, version=version))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def shred(self, dataset: str, version: int) -> ShreddedVersion:
        """Destroys the data key of a version, for ever; repeated, it gives the same receipt.

        The receipt is verified under the key that the service names, which is the
        service's word: compare it with the log key that you know.

        Raises:
            NotFound: there is no such version, or it is not granted.
            Unavailable: the service will finish what was begun; ask again for the receipt.
        """
        request = messages.ShredVersionRequest(dataset=dataset, version=version)
        try:
            answer = self._stub.ShredVersion(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        log, key = parse_verification_key(answer.log_key)
        verified = verify_shred_receipt(bytes(answer.receipt), log=log, public_key=key)
        if (verified.receipt.dataset, verified.receipt.version) != (dataset, version):
            raise StoredDataUnreadable("the receipt is another version's")
        return ShreddedVersion(verified.receipt, bytes(answer.receipt), answer.log_key)

    def manifest(
        self,
        source: RecordSource,
        *,
        tenant: str,
        dataset: str,
        schema: Sequence[Column],
        format: Literal["csv", "jsonl"] = "csv",  # noqa: A002  # the manifest's own word
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> DatasetManifest:
        """Counts and digests the records into the manifest of the next version. Reads them once."""
        try:
            latest = self.describe(dataset)
            version, previous = latest.version + 1, latest.root
        except NotFound:
            version, previous = 1, None
        chunks = digest(cut(source(), chunk_bytes=chunk_bytes))
        return DatasetManifest(
            audience=self._session.service_name("datasets"),
            tenant=tenant,
            dataset=dataset,
            version=version,
            previous_root=previous,
            format=format,
            schema=tuple(schema),
            rows=sum(chunk.rows for chunk in chunks),
            bytes=sum(chunk.bytes for chunk in chunks),
            chunks=chunks,
            root=root([chunk.leaf_hash for chunk in chunks]),
            upload_id=secrets.token_hex(16),
            expires_at=self._clock.now() + MANIFEST_LIFETIME,
        )

    def push(
        self,
        source: RecordSource,
        *,
        manifest: DatasetManifest,
        signing_key: SigningKey,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> PushedVersion:
        """Signs the manifest and pushes its records; returns when the version is readable.

        Safe to repeat with the same manifest after a crash: only what was not
        acknowledged is sent again.

        Raises:
            InvalidRequest: the service refused manifest, chunk or record; names which.
            PermissionDenied: the signer is not trusted.
            NotFound: pushing to this dataset is not granted.
        """
        envelope = sign_dataset_manifest(manifest, signing_key)
        return self.push_envelope(envelope, cut(source(), chunk_bytes=chunk_bytes), dataset=manifest.dataset)

    def push_envelope(self, envelope: bytes, chunks: Iterator[bytes], *, dataset: str) -> PushedVersion:
        """Pushes an envelope that was signed elsewhere, and its chunks."""
        acknowledged: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        requests = _requests(envelope, chunks, dataset, acknowledged)
        responses = self._stub.PushDataset(requests, timeout=PULL_TIMEOUT_SECONDS)
        promoted: messages.PromotedVersion | None = None
        try:
            for response in responses:
                acknowledged.put(response.next_offset)
                if response.HasField("promoted"):
                    promoted = response.promoted
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            acknowledged.put(None)  # ends the sender, whatever happened
        if promoted is None:
            raise StoredDataUnreadable("the service ended the upload without promoting it")
        return PushedVersion(dataset, promoted.version, promoted.root, promoted.rows, promoted.log_index)

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


def _requests(
    envelope: bytes, chunks: Iterator[bytes], dataset: str, acknowledged: queue.SimpleQueue[int | None]
) -> Iterator[messages.PushDatasetRequest]:
    """The manifest, the chunks from the announced offset on, and the end."""
    yield messages.PushDatasetRequest(dataset=dataset, manifest=envelope)
    wanted = acknowledged.get()
    if wanted is None:
        return
    offset = 0
    in_flight = 0
    for data in chunks:
        if offset >= wanted:
            while in_flight >= CHUNKS_IN_FLIGHT:
                if acknowledged.get() is None:
                    return
                in_flight -= 1
            yield messages.PushDatasetRequest(chunk=messages.Chunk(offset=offset, data=data))
            in_flight += 1
        offset += len(data)
    yield messages.PushDatasetRequest(finish=messages.Finish())


def _proven(verified: VerifiedManifest, responses: Iterator[messages.PullDatasetResponse]) -> Iterator[PulledBatch]:
    """Gives out batches in order, each recomputed from its records and proven under the signed root."""
    manifest = verified.manifest
    number = ordinal = 0
    try:
        for response in responses:
            batch = response.batch
            records = tuple(batch.records)
            leaf = leaf_hash(b"".join(record + b"\n" for record in records))
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
