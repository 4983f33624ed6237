"""Pushing signed datasets: the manifest first, then its chunks.

If this fails: what was signed does not become readable; the service checks signature and root itself.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import grpc

from casemate.client.chunk_requests import encode_chunk_request, push_call
from casemate.client.chunks import DEFAULT_CHUNK_BYTES, RecordSource, cut
from casemate.client.dataset_files import CutChunk, DatasetFile
from casemate.client.datasets_versions import DatasetVersions
from casemate.client.next_version import NextVersion
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import AlreadyExists, NotFound, Reason, StoredDataUnreadable, Unauthenticated, Unavailable
from casemate.signing import dsse
from casemate.signing.dataset_manifest import NEXT_VERSION, PREVIOUS_ROOT
from casemate.signing.framing import Format
from casemate.signing.keys import PublicKey, SigningKey
from casemate.signing.statements import DATASET_MANIFEST_TYPE, Column, DatasetManifest, sign_dataset_manifest
from casemate.transport.status import from_rpc_error

MANIFEST_LIFETIME = timedelta(hours=24)
"""How long a signed manifest may be used to upload."""

CHUNKS_IN_FLIGHT = 8
"""Chunks sent and not yet acknowledged: bounds what a crash repeats."""

PUSH_TIMEOUT_SECONDS = 3600.0

RETRY_WAITS: Final = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Seconds between attempts at an upload that nothing gets through of: a service is back in less."""


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
        format: Format = "csv",  # noqa: A002  # the manifest's own word
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        trusted: Sequence[PublicKey] | None = None,
    ) -> DatasetManifest:
        """Counts and digests the records, lines of text, into the manifest of the next version. Reads them once.

        Args:
            source: the records.
            tenant: whose dataset it is.
            dataset: its name.
            schema: its columns.
            format: how the records are written.
            chunk_bytes: of a chunk, at most.
            trusted: keys of those who may have signed the version before; that it is the one to be continued is then
                verified. Not given: its number and its root are the service's word, and what is signed says them.

        Raises:
            SignatureInvalid, PermissionDenied: the version before is not signed by a trusted key.
        """
        chunks = (CutChunk(data, data.count(b"\n")) for data in cut(source(), chunk_bytes=chunk_bytes))
        following = self._following(tenant, dataset, trusted)
        return following.manifest(chunks, schema=schema, encoding=format, expires_at=self._expiry())

    def manifest_of(
        self, file: DatasetFile, *, tenant: str, dataset: str, trusted: Sequence[PublicKey] | None = None
    ) -> DatasetManifest:
        """Counts and digests a file into the manifest of the next version; see `manifest`. Reads it once."""
        following = self._following(tenant, dataset, trusted)
        return following.manifest(file.chunks(), schema=file.schema, encoding=file.format, expires_at=self._expiry())

    def _following(self, tenant: str, dataset: str, trusted: Sequence[PublicKey] | None) -> NextVersion:
        first = NextVersion(audience=self._session.service_name("datasets"), tenant=tenant, dataset=dataset)
        try:
            latest = self.describe(dataset)
        except NotFound:
            return first
        if trusted is not None:
            return NextVersion.after(self.verified(latest, tenant=tenant, dataset=dataset, trusted=trusted).manifest)
        return replace(first, version=latest.version + 1, previous_root=latest.root)

    def _expiry(self) -> datetime:
        return self._clock.now() + MANIFEST_LIFETIME

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
        acknowledged is sent again. Where a first version was signed because none could
        be read, and there are some, it is signed again as the next one that the service names.

        Raises:
            InvalidRequest: the service refused manifest, chunk or record; names which.
            PermissionDenied: the signer is not trusted.
            NotFound: pushing to this dataset is not granted.
        """
        envelope = sign_dataset_manifest(manifest, signing_key)
        try:
            return self.push_envelope(envelope, cut(source(), chunk_bytes=chunk_bytes), dataset=manifest.dataset)
        except AlreadyExists as error:
            envelope = sign_dataset_manifest(_renumbered(manifest, error), signing_key)
        return self.push_envelope(envelope, cut(source(), chunk_bytes=chunk_bytes), dataset=manifest.dataset)

    def push_file(
        self,
        file: DatasetFile,
        *,
        manifest: DatasetManifest,
        signing_key: SigningKey,
        progress: Callable[[int], None] | None = None,
        retry_waits: Sequence[float] = RETRY_WAITS,
        take_number: bool = True,
    ) -> PushedVersion:
        """As `push`, of a file; goes on by itself where the connection or the service was lost, or the token ended.

        Args:
            file: what the manifest was made of.
            manifest: by `manifest_of`.
            signing_key: the supplier's.
            progress: is told how many bytes are durable, each time there are more.
            retry_waits: seconds before each further attempt; begun anew whenever something got through.
            take_number: whether a first version is signed again as the one that the service says comes next.

        Raises:
            Unavailable: the service was not there at any of them.
        """
        envelope = sign_dataset_manifest(manifest, signing_key)
        durable = fruitless = 0

        def told(offset: int) -> None:
            nonlocal durable, fruitless
            if offset > durable:
                durable, fruitless = offset, 0
                if progress is not None:
                    progress(offset)

        while True:
            try:
                return self.push_envelope(envelope, file.chunks(), dataset=manifest.dataset, progress=told)
            except AlreadyExists as error:
                if not take_number:
                    raise
                manifest = _renumbered(manifest, error)
                envelope = sign_dataset_manifest(manifest, signing_key)
            except (Unavailable, Unauthenticated) as error:
                # A token outlives few uploads, and the next call has a new one. What else is wrong with it stays wrong.
                if error.reason not in {Reason.DEPENDENCY_UNAVAILABLE, Reason.TOKEN_EXPIRED}:
                    raise
                if fruitless >= len(retry_waits):
                    raise
                threading.Event().wait(retry_waits[fruitless])
                fruitless += 1

    def push_envelope(
        self,
        envelope: bytes,
        chunks: Iterator[bytes] | Iterator[CutChunk],
        *,
        dataset: str,
        progress: Callable[[int], None] | None = None,
    ) -> PushedVersion:
        """Pushes an envelope that was signed elsewhere, and its chunks.

        Raises:
            InvalidRequest: the envelope holds no manifest, or the service refused it, a chunk or a record; names which.
            StoredDataUnreadable: the service acknowledged or promoted something else than was signed.
        """
        told = _Told(DatasetManifest.parse(dsse.peek_payload(envelope, DATASET_MANIFEST_TYPE)))
        acknowledged: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        sending = _Sending(envelope, chunks, dataset, acknowledged)
        responses = push_call(self._session.channel("datasets"))(iter(sending), timeout=PUSH_TIMEOUT_SECONDS)
        try:
            for response in responses:
                told.hear(response)
                acknowledged.put(response.next_offset)
                if progress is not None:
                    progress(response.next_offset)
        except grpc.RpcError as error:
            if sending.error is not None:
                raise sending.error from error
            raise from_rpc_error(error) from error
        finally:
            acknowledged.put(None)  # ends the sender, whatever happened
            responses.cancel()  # and the call, if it was not the service that ended it
        if told.promoted is None:
            raise StoredDataUnreadable("the service ended the upload without promoting it")
        signed = told.manifest
        return PushedVersion(dataset, signed.version, signed.root, signed.rows, told.promoted.log_index)


def _renumbered(manifest: DatasetManifest, taken: AlreadyExists) -> DatasetManifest:
    """A first version's manifest as the next one's, where the dataset turned out to have some that cannot be read.

    Raises:
        AlreadyExists: as it came, if the manifest was not made for want of a version, or nothing is said of the next.
    """
    said = {violation.field: violation.description for violation in taken.violations}
    number, previous = said.get(NEXT_VERSION, ""), said.get(PREVIOUS_ROOT, "")
    if manifest.version != 1 or not number.isdecimal() or int(number) < 2:
        raise taken
    try:
        return replace(
            manifest,
            version=int(number),
            previous_root=bytes.fromhex(previous),
            upload_id=secrets.token_hex(16),
        )
    except ValueError:
        raise taken from None


class _Told:
    """What the service says of an upload, held against the manifest: nothing else bounds what it says."""

    def __init__(self, manifest: DatasetManifest) -> None:
        self.manifest = manifest
        self.promoted: messages.PromotedVersion | None = None
        self._offset = 0
        self._left = len(manifest.chunks) + 2  # one answer a message: the manifest, each chunk, the end

    def hear(self, said: messages.PushDatasetResponse) -> None:
        """Takes one answer.

        Raises:
            StoredDataUnreadable: it cannot be one about this manifest.
        """
        self._left -= 1
        if self._left < 0 or not self._offset <= said.next_offset <= self.manifest.bytes:
            raise StoredDataUnreadable("the service acknowledged what was not sent")
        self._offset = said.next_offset
        if said.HasField("promoted"):
            promoted, manifest = said.promoted, self.manifest
            signed = (manifest.version, manifest.root, manifest.rows, manifest.bytes)
            if (promoted.version, promoted.root, promoted.rows, said.next_offset) != signed:
                raise StoredDataUnreadable("the service promoted something else than was signed")
            self.promoted = promoted


class _Sending:
    """The manifest, the chunks from the announced offset on, and the end; gRPC iterates it in a thread of its own."""

    def __init__(
        self,
        envelope: bytes,
        chunks: Iterator[bytes] | Iterator[CutChunk],
        dataset: str,
        acknowledged: queue.SimpleQueue[int | None],
    ) -> None:
        self._envelope = envelope
        self._chunks = chunks
        self._dataset = dataset
        self._acknowledged = acknowledged
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._requests()
        except Exception as error:
            # gRPC would say no more than that iterating failed.
            self.error = error
            raise

    def _requests(self) -> Iterator[bytes]:
        yield messages.PushDatasetRequest(dataset=self._dataset, manifest=self._envelope).SerializeToString()
        wanted = self._acknowledged.get()
        if wanted is None:
            return
        offset = in_flight = 0
        for each in self._chunks:
            chunk = CutChunk(each, 0) if isinstance(each, bytes) else each
            if offset >= wanted:
                while in_flight >= CHUNKS_IN_FLIGHT:
                    if self._acknowledged.get() is None:
                        return
                    in_flight -= 1
                yield encode_chunk_request(offset, chunk)
                in_flight += 1
            offset += chunk.size
        yield messages.PushDatasetRequest(finish=messages.Finish()).SerializeToString()
