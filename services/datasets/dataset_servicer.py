"""`casemate.datasets.v1.DatasetService`: messages in, messages out; what they mean is elsewhere.

Who may call and on which dataset was decided by the gate. The tenant is always
the caller's own, never one that a message names (CheckRoots excepted, which only
a service of ours may call).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import NotFound
from casemate.gate.adapters.caller_context import current_caller
from casemate.signing.batch_order import BatchOrder
from services.datasets.answers import callers_tenant, description, invalid, promoted
from services.datasets.arrivals import Arrivals
from services.datasets.catalogue_servicer import MAXIMUM_VERSION, Catalogue, CatalogueCalls
from services.datasets.chunk_messages import ChunkRequest
from services.datasets.storing import Storing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.datasets.exports import Exports
    from services.datasets.push import Intake, OpenUpload
    from services.datasets.shred import Shredder

MAXIMUM_ROOTS = 1000


class DatasetServicer(CatalogueCalls):
    """Push, describe, pull, shred, check; the rest is `CatalogueCalls`."""

    def __init__(
        self, *, intake: Intake, catalogue: Catalogue, exports: Exports, shredder: Shredder, log_key: str
    ) -> None:
        self._intake = intake
        self._catalogue = catalogue
        self._reader = catalogue.reader
        self._versions = catalogue.versions
        self._exports = exports
        self._shredder = shredder
        self._log_key = log_key

    async def PushDataset(  # noqa: N802  # the protocol's name
        self, request_iterator: AsyncIterator[messages.PushDatasetRequest | ChunkRequest], _context: object
    ) -> AsyncIterator[messages.PushDatasetResponse]:
        """Answers each message once what it asked for is durable; a few chunks are in memory."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        upload = await self._open(callers_tenant(), first)
        yield messages.PushDatasetResponse(next_offset=upload.next_offset)
        largest = upload.largest_chunk
        async with (
            Arrivals(_Steps(requests, first.dataset), upload, largest=largest) as arrivals,
            Storing(arrivals, upload, largest=largest) as storing,
        ):
            async for count, offset in storing.stored():
                for _ in range(count):
                    yield messages.PushDatasetResponse(next_offset=offset)
        if arrivals.finished:
            yield promoted(await upload.finish())

    async def _open(self, tenant: str, request: messages.PushDatasetRequest | ChunkRequest) -> OpenUpload:
        if isinstance(request, ChunkRequest) or request.WhichOneof("step") != "manifest":
            raise invalid("step", "the first message carries the manifest")
        return await self._intake.open(tenant=tenant, dataset=request.dataset, envelope=request.manifest)

    async def GetVersion(  # noqa: N802
        self, request: messages.GetVersionRequest, _context: object
    ) -> messages.GetVersionResponse:
        """Describes a promoted version."""
        readable = await self._versions.described(
            current_caller(), callers_tenant(), dataset=request.dataset, version=request.version, label=request.label
        )
        return description(readable, await self._versions.labels_of(readable))

    async def PullDataset(  # noqa: N802
        self, request: messages.PullDatasetRequest, _context: object
    ) -> AsyncIterator[messages.PullDatasetResponse]:
        """The description, then batch after batch, each verified before it is sent, then the receipt.

        Logged before the first batch and after the last, or where the call was cut.
        """
        caller = current_caller()
        readable = await self._versions.readable(
            caller, callers_tenant(), dataset=request.dataset, version=request.version, label=request.label
        )
        order = _order(request)
        order.require_within(len(readable.manifest.manifest.chunks))
        export = await self._exports.begin(readable, order, caller)
        complete = False
        try:
            yield messages.PullDatasetResponse(description=description(readable))
            async for batch in self._reader.batches(readable, order):
                self._versions.require_grant(caller, readable.upload)
                export.count(batch)
                yield messages.PullDatasetResponse(
                    batch=messages.Batch(
                        number=batch.number,
                        first_ordinal=batch.first_ordinal,
                        records=batch.records,
                        inclusion_proof=batch.inclusion_proof,
                    )
                )
            proof = await self._exports.end(export)
            complete = True
            yield messages.PullDatasetResponse(
                receipt=messages.ExportReceipt(receipt=proof.envelope, log_key=self._log_key, log_index=proof.log_index)
            )
        finally:
            if not complete:
                self._exports.cut(export)

    async def ShredVersion(  # noqa: N802
        self, request: messages.ShredVersionRequest, _context: object
    ) -> messages.ShredVersionResponse:
        """Destroys a version's data key, or those of all attempts at it, and answers with the receipt."""
        if not 0 < request.version <= MAXIMUM_VERSION:
            raise invalid("version", "required: shredding has no latest")
        tenant = callers_tenant()
        try:
            receipt = await self._shredder.shred(tenant=tenant, dataset=request.dataset, version=request.version)
        except NotFound:
            if "\x00" in request.dataset:
                raise
            found = await self._shredder.discard_all(tenant=tenant, dataset=request.dataset, version=request.version)
            return messages.ShredVersionResponse(receipt=found[-1], log_key=self._log_key, further_receipts=found[:-1])
        return messages.ShredVersionResponse(receipt=receipt, log_key=self._log_key)

    async def CheckRoots(  # noqa: N802
        self, request: messages.CheckRootsRequest, _context: object
    ) -> messages.CheckRootsResponse:
        """Names the roots that may not be relied on, and why where it is known."""
        if not request.tenant or "\x00" in request.tenant:
            raise invalid("tenant", "required, without NUL")
        if len(request.roots) > MAXIMUM_ROOTS:
            raise invalid("roots", "more than 1000")
        judged = await self._reader.judge_roots(tenant=request.tenant, roots=list(request.roots))
        return messages.CheckRootsResponse(
            refused=judged.refused, quarantined=judged.quarantined, shredded=judged.shredded
        )


class _Steps:
    """The chunks behind the manifest, at last None where the supplier says that it is done.

    No generator: that would keep a message of megabytes until the next one is asked for.
    """

    def __init__(self, requests: AsyncIterator[messages.PushDatasetRequest | ChunkRequest], dataset: str) -> None:
        self._requests = requests
        self._dataset = dataset

    def __aiter__(self) -> _Steps:
        return self

    async def __anext__(self) -> tuple[int, bytes | memoryview] | None:
        request = await anext(self._requests)
        if isinstance(request, ChunkRequest):
            return request.offset, request.data
        if request.dataset not in {"", self._dataset}:
            raise invalid("dataset", "not the one of the first message")
        step = request.WhichOneof("step")
        if step not in {"chunk", "finish"}:
            raise invalid("step", "not a chunk and not the end, after the manifest")
        return (request.chunk.offset, request.chunk.data) if step == "chunk" else None


def _order(request: messages.PullDatasetRequest) -> BatchOrder:
    return BatchOrder(
        shard=request.shard,
        shards=request.shards or 1,
        shuffle_seed=request.shuffle_seed if request.HasField("shuffle_seed") else None,
        position=request.position,
    )
