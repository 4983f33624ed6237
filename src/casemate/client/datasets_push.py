"""Pushing signed datasets: the manifest first, then its chunks.

If this fails: what was signed does not become readable; the service checks signature and root itself.
"""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import grpc

from casemate.client.chunks import DEFAULT_CHUNK_BYTES, RecordSource, cut, digest
from casemate.client.datasets_versions import DatasetVersions
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import NotFound, StoredDataUnreadable
from casemate.signing.keys import SigningKey
from casemate.signing.merkle import root
from casemate.signing.statements import Column, DatasetManifest, sign_dataset_manifest
from casemate.transport.status import from_rpc_error

MANIFEST_LIFETIME = timedelta(hours=24)
"""How long a signed manifest may be used to upload."""

CHUNKS_IN_FLIGHT = 8
"""Chunks sent and not yet acknowledged: bounds what a crash repeats."""

PUSH_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class PushedVersion:
    """A version that is now readable."""

    dataset: str
    version: int
    root: bytes
    rows: int
    log_index: int


class DatasetPushes(DatasetVersions):
    """Pushes of the session's tenant."""

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
        responses = self._stub.PushDataset(requests, timeout=PUSH_TIMEOUT_SECONDS)
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
