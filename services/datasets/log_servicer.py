"""`casemate.datasets.v1.LogService`: the transparency log over the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.datasets.v1 import log_service_pb2_grpc as stubs
from casemate.errors import OutOfRange, PermissionDenied, Reason
from casemate.gate.adapters.caller_context import current_caller
from casemate.signing.checkpoint import sign_checkpoint
from services.datasets.log import parse_body

if TYPE_CHECKING:
    from casemate.signing.keys import SigningKey
    from services.datasets.log_store import LogStore

_LARGEST_INDEX = 2**63 - 1


class LogServicer(stubs.LogServiceServicer):
    """Append by services, checkpoint and entries for whoever may read the log."""

    def __init__(self, *, log: LogStore, key: SigningKey, origin: str) -> None:
        self._log = log
        self._key = key
        self._origin = origin

    async def AppendEntry(  # noqa: N802  # the protocol's name
        self, request: messages.AppendEntryRequest, _context: object
    ) -> messages.AppendEntryResponse:
        """Appends in the name of the calling service; durable when answered."""
        service = current_caller().service
        if service is None:  # the policy admits services alone; not left to that alone
            raise PermissionDenied("an entry by no service", reason=Reason.CALLER_NOT_ALLOWED)
        body = parse_body(request.kind, request.body)
        return messages.AppendEntryResponse(index=await self._log.append_alone(request.kind, body, by=service))

    async def GetCheckpoint(  # noqa: N802
        self, _request: messages.GetCheckpointRequest, _context: object
    ) -> messages.GetCheckpointResponse:
        """Signs the present head."""
        head = await self._log.head()
        note = sign_checkpoint(self._origin, head.size, head.root, self._key)
        return messages.GetCheckpointResponse(checkpoint=note)

    async def GetEntry(  # noqa: N802
        self, request: messages.GetEntryRequest, _context: object
    ) -> messages.GetEntryResponse:
        """One entry and its proof."""
        if max(request.index, request.tree_size) > _LARGEST_INDEX:
            raise OutOfRange("beyond any log")
        entry, proof, size = await self._log.entry(request.index, request.tree_size)
        return messages.GetEntryResponse(entry=entry, inclusion_proof=proof, tree_size=size)
