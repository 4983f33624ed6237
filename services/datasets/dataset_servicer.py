"""`casemate.datasets.v1.DatasetService`: messages in, messages out; what they mean is elsewhere.

Who may call and on which dataset was decided by the gate. The tenant is always
the caller's own, never one that a message names (CheckRoots excepted, which only
a service of ours may call).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1 import dataset_service_pb2_grpc as stubs
from casemate.errors import FieldViolation, InvalidRequest, PermissionDenied, Reason
from casemate.gate.adapters.caller_context import current_caller
from services.datasets.arrivals import Arrivals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from casemate.gate.core.caller import Caller
    from services.datasets.log_store import LogStore
    from services.datasets.pull import ReadableVersion, Reader
    from services.datasets.push import Intake, OpenUpload
    from services.datasets.shred import Shredder
    from services.datasets.upload import Upload

MAXIMUM_ROOTS = 1000
MAXIMUM_VERSION = 2**63 - 1


class DatasetServicer(stubs.DatasetServiceServicer):
    """Push, describe, pull, shred, check."""

    def __init__(self, *, intake: Intake, reader: Reader, shredder: Shredder, log: LogStore, log_key: str) -> None:
        self._intake = intake
        self._reader = reader
        self._shredder = shredder
        self._log = log
        self._log_key = log_key

    async def PushDataset(  # noqa: N802  # the protocol's name
        self, request_iterator: AsyncIterator[messages.PushDatasetRequest], _context: object
    ) -> AsyncIterator[messages.PushDatasetResponse]:
        """Answers each message once what it asked for is durable; a few chunks are in memory."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        upload = await self._open(_tenant(), first)
        yield messages.PushDatasetResponse(next_offset=upload.next_offset)
        async with Arrivals(_steps(requests, first.dataset), upload, largest=upload.largest_chunk) as arrivals:
            async for group in arrivals.groups():
                offset = await upload.store(group)
                for _ in group:
                    yield messages.PushDatasetResponse(next_offset=offset)
        if arrivals.finished:
            yield _promoted(await upload.finish())

    async def _open(self, tenant: str, request: messages.PushDatasetRequest) -> OpenUpload:
        if request.WhichOneof("step") != "manifest":
            raise _invalid("step", "the first message carries the manifest")
        return await self._intake.open(tenant=tenant, dataset=request.dataset, envelope=request.manifest)

    async def GetVersion(  # noqa: N802
        self, request: messages.GetVersionRequest, _context: object
    ) -> messages.GetVersionResponse:
        """Describes a promoted version."""
        readable = await self._reader.describe(tenant=_tenant(), dataset=request.dataset, version=request.version)
        return _description(readable)

    async def PullDataset(  # noqa: N802
        self, request: messages.PullDatasetRequest, _context: object
    ) -> AsyncIterator[messages.PullDatasetResponse]:
        """The description, then batch after batch, each verified before it is sent; logged before the first."""
        readable = await self._reader.readable(tenant=_tenant(), dataset=request.dataset, version=request.version)
        await self._log.append_alone("export", _export(readable, current_caller()), by="datasets")
        yield messages.PullDatasetResponse(description=_description(readable))
        async for batch in self._reader.batches(readable):
            yield messages.PullDatasetResponse(
                batch=messages.Batch(
                    number=batch.number,
                    first_ordinal=batch.first_ordinal,
                    records=batch.records,
                    inclusion_proof=batch.inclusion_proof,
                )
            )

    async def ShredVersion(  # noqa: N802
        self, request: messages.ShredVersionRequest, _context: object
    ) -> messages.ShredVersionResponse:
        """Destroys a version's data key, and answers with the receipt."""
        if not 0 < request.version <= MAXIMUM_VERSION:
            raise _invalid("version", "required: shredding has no latest")
        receipt = await self._shredder.shred(tenant=_tenant(), dataset=request.dataset, version=request.version)
        return messages.ShredVersionResponse(receipt=receipt, log_key=self._log_key)

    async def CheckRoots(  # noqa: N802
        self, request: messages.CheckRootsRequest, _context: object
    ) -> messages.CheckRootsResponse:
        """Names the roots that may not be relied on."""
        if not request.tenant or "\x00" in request.tenant:
            raise _invalid("tenant", "required, without NUL")
        if len(request.roots) > MAXIMUM_ROOTS:
            raise _invalid("roots", "more than 1000")
        refused = await self._reader.refused_roots(tenant=request.tenant, roots=list(request.roots))
        return messages.CheckRootsResponse(refused=refused)


async def _steps(
    requests: AsyncIterator[messages.PushDatasetRequest], dataset: str
) -> AsyncIterator[tuple[int, bytes] | None]:
    """The chunks behind the manifest, at last None where the supplier says that it is done."""
    async for request in requests:
        if request.dataset not in {"", dataset}:
            raise _invalid("dataset", "not the one of the first message")
        step = request.WhichOneof("step")
        if step not in {"chunk", "finish"}:
            raise _invalid("step", "not a chunk and not the end, after the manifest")
        yield (request.chunk.offset, request.chunk.data) if step == "chunk" else None


def _tenant() -> str:
    tenant = current_caller().tenant
    if tenant is None:  # the policy asks for a token, and each names a tenant; not left to that alone
        raise PermissionDenied("a call without a tenant", reason=Reason.CALLER_NOT_ALLOWED)
    return tenant


def _export(readable: ReadableVersion, caller: Caller) -> dict[str, object]:
    """Who is given which version; the audit has more under the request's id."""
    return {
        "caller": caller.spiffe_id,
        "client": caller.client_id,
        "dataset": readable.upload.dataset,
        "request": caller.request_id,
        "root": readable.upload.root.hex(),
        "tenant": readable.upload.tenant,
        "version": readable.upload.version,
    }


def _promoted(upload: Upload) -> messages.PushDatasetResponse:
    return messages.PushDatasetResponse(
        next_offset=upload.next_offset,
        promoted=messages.PromotedVersion(
            version=upload.version, root=upload.root, rows=upload.row_count, log_index=upload.log_index or 0
        ),
    )


def _description(readable: ReadableVersion) -> messages.GetVersionResponse:
    upload = readable.upload
    promoted_at = Timestamp()
    promoted_at.FromDatetime(readable.promoted_at)
    shredded_at = None
    if readable.shredded_at is not None:
        shredded_at = Timestamp()
        shredded_at.FromDatetime(readable.shredded_at)
    return messages.GetVersionResponse(
        version=upload.version,
        manifest=readable.manifest.envelope,
        root=upload.root,
        rows=upload.row_count,
        promoted_at=promoted_at,
        signer_key_id=upload.signer_key_id,
        shredded_at=shredded_at,
    )


def _invalid(field: str, text: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {text}", violations=(FieldViolation(field, text),))
