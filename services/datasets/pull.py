"""Gives promoted versions out, proven while they are read. Knows no transport.

Nothing of what the database says is passed on unverified: the version's row by
its MAC, the manifest by its signature, every batch by opening it and hashing it
to its leaf under the signed root.

If this fails: a reader gets rows that were not signed. A reader who recomputes
leaf, proof and root, as `casemate.client` does, still notices.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import InitVar, dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from casemate.errors import InvalidRequest, NotFound, PermissionDenied, StoredDataUnreadable
from casemate.sealing.rows import open_rows
from casemate.signing import merkle
from casemate.signing.statements import verify_dataset_manifest
from services.datasets.fetching import fetched_ahead
from services.datasets.key_store import DataKeyGone, rows_context
from services.datasets.push import batch_context
from services.datasets.records import join_records
from services.datasets.trusted import is_trusted, require_trusted
from services.datasets.upload import ChunkPlan, UploadState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from casemate.sealing.keys import DataKey
    from casemate.sealing.rows import SealedBatch
    from casemate.signing.batch_order import BatchOrder
    from casemate.signing.statements import DatasetManifest, SignerResolver, VerifiedManifest
    from services.datasets.alarms import Alarms
    from services.datasets.key_store import DataKeyStore
    from services.datasets.shred_store import ShredStore
    from services.datasets.store import VersionStore
    from services.datasets.upload import PlannedChunk, Upload

_SEAL: Final = object()
_LARGEST_VERSION: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ReadableVersion:
    """A promoted version whose row, manifest and signer were verified; only `Reader` makes one.

    `shredded_at` is None while its rows can be read.
    """

    upload: Upload
    promoted_at: datetime
    manifest: VerifiedManifest
    shredded_at: datetime | None
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a ReadableVersion is made by Reader.describe")


@dataclass(frozen=True, slots=True)
class OpenedBatch:
    """One chunk in plaintext, with its proof. `first_ordinal` counts records from 0."""

    number: int
    first_ordinal: int
    records: Sequence[bytes]
    inclusion_proof: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRoots:
    """Those of some roots that no readable version has, and what is known of them; see `CheckRootsResponse`."""

    refused: list[bytes]
    quarantined: list[bytes]
    shredded: list[bytes]


class Reader:
    """Reads promoted versions, whose manifests are for `audience`."""

    def __init__(
        self,
        *,
        audience: str,
        store: VersionStore,
        shreds: ShredStore,
        keys: DataKeyStore,
        resolve: SignerResolver,
        alarms: Alarms,
    ) -> None:
        self._audience = audience
        self._store = store
        self._shreds = shreds
        self._keys = keys
        self._resolve = resolve
        self._alarms = alarms

    async def describe(self, *, tenant: str, dataset: str, version: int) -> ReadableVersion:
        """A version by number; zero is the latest. A shredded one can still be described.

        Raises:
            NotFound: it is absent, not promoted, or signed by a key that is
                compromised since before its promotion.
            StoredDataUnreadable: its row or manifest is not what this service wrote.
        """
        if "\x00" in dataset or version > _LARGEST_VERSION:
            raise NotFound("no dataset has such a name or number")
        if version:
            upload = await self._store.version(tenant, dataset, version)
        else:
            upload = await self._store.latest(tenant, dataset)
        if upload is None or upload.promoted_at is None:
            raise NotFound(f"no version {version or 'at all'} of {tenant}/{dataset}")
        require_trusted(upload, self._resolve)
        verified = await self._verified(upload, upload.promoted_at)
        shredded = upload.state is UploadState.SHREDDED
        shredded_at = (await self._shreds.shredding(upload)).shredded_at if shredded else None
        return ReadableVersion(upload, upload.promoted_at, verified, shredded_at, _SEAL)

    async def readable(self, *, tenant: str, dataset: str, version: int) -> ReadableVersion:
        """As `describe`, of a version whose rows can be read.

        Raises:
            NotFound: also if it was shredded, the latest version included: an older one is another version.
        """
        described = await self.describe(tenant=tenant, dataset=dataset, version=version)
        if described.shredded_at is not None:
            raise NotFound(f"version {described.upload.version} of {tenant}/{dataset} was shredded")
        return described

    async def batches(self, readable: ReadableVersion, order: BatchOrder) -> AsyncIterator[OpenedBatch]:
        """The batches of a shard, in its order. Memory: the manifest's tree and one chunk.

        Raises:
            InvalidRequest: the position is beyond the shard's end.
            StoredDataUnreadable: a batch does not open, or is not the signed chunk.
            NotFound: the signer's key was declared compromised, or the version shredded, meanwhile.
            Unavailable, FailedPrecondition: the key is not in memory, and cannot be unwrapped now.
        """
        upload, manifest = readable.upload, readable.manifest.manifest
        plan = ChunkPlan(manifest.chunks)
        numbers = await asyncio.to_thread(order.numbers, manifest.root, len(manifest.chunks))
        tree = await asyncio.to_thread(merkle.MerkleTree, [chunk.leaf_hash for chunk in manifest.chunks])
        async with aclosing(fetched_ahead(numbers, partial(self._store.batch, upload))) as batches:
            async for number, fetching in batches:
                chunk = plan.number(number)
                require_trusted(upload, self._resolve)
                with self._alarms.on_integrity():
                    head, rows = await fetching
                    key = await self._key(upload, use_bytes=chunk.digest.bytes)
                    await asyncio.to_thread(_open, key, manifest, chunk, head, rows)
                yield OpenedBatch(number, chunk.first_ordinal, rows, tree.inclusion_proof(number))
                del rows, fetching  # or they would be kept while the next ones come

    async def _key(self, upload: Upload, *, use_bytes: int) -> DataKey:
        """The data key, asked for with every batch: it is dropped while a long reading goes on."""
        context = rows_context(upload.tenant, upload.dataset, upload.version)
        try:
            return await self._keys.open(upload.data_key, context, use_bytes=use_bytes)
        except DataKeyGone:
            now = await self._store.version(upload.tenant, upload.dataset, upload.version)
            if now is not None and now.state is UploadState.SHREDDED:
                raise NotFound(f"upload {upload.id} was shredded") from None
            raise

    async def judge_roots(self, *, tenant: str, roots: Sequence[bytes]) -> JudgedRoots:
        """What the versions of a tenant say of each root.

        A root that one trusted signer vouches for is not in doubt, whoever else signed it.
        """
        readable, shredded, doubted = set[bytes](), set[bytes](), set[bytes]()
        for upload in await self._store.with_roots(tenant, roots):
            if is_trusted(upload, self._resolve):
                (shredded if upload.state is UploadState.SHREDDED else readable).add(upload.root)
            else:
                doubted.add(upload.root)
        refused = [root for root in roots if root not in readable]
        return JudgedRoots(
            refused=refused,
            quarantined=[root for root in refused if root in doubted - shredded],
            shredded=[root for root in refused if root in shredded],
        )

    async def _verified(self, upload: Upload, promoted_at: datetime) -> VerifiedManifest:
        with self._alarms.on_integrity():
            envelope = await self._store.envelope(upload)
            try:
                verified = await asyncio.to_thread(
                    verify_dataset_manifest,
                    envelope,
                    audience=self._audience,
                    tenant=upload.tenant,
                    dataset=upload.dataset,
                    resolve=self._resolve,
                    now=promoted_at,
                )
            except (InvalidRequest, PermissionDenied) as error:
                raise StoredDataUnreadable(f"the manifest of upload {upload.id} does not verify") from error
            if (verified.payload_sha256, verified.signer_key_id) != (upload.manifest_sha256, upload.signer_key_id):
                raise StoredDataUnreadable(f"the manifest of upload {upload.id} is another one")
        return verified


def _open(key: DataKey, manifest: DatasetManifest, chunk: PlannedChunk, head: SealedBatch, rows: list[bytes]) -> None:
    """Opens the rows of a stored batch in their list, if they are the chunk that was signed."""
    if len(rows) != chunk.digest.rows or head.first_ordinal != chunk.first_ordinal:
        raise StoredDataUnreadable(f"batch {chunk.number} has other rows than were signed")
    open_rows(
        key,
        batch_context(manifest, chunk.number),
        rows,
        salt=head.salt,
        commitment=head.commitment,
        first_ordinal=head.first_ordinal,
    )
    if merkle.leaf_hash(join_records(rows, encoding=manifest.format)) != chunk.digest.leaf_hash:
        raise StoredDataUnreadable(f"batch {chunk.number} opens to bytes that were not signed")
