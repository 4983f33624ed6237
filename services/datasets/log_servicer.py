"""`casemate.datasets.v1.LogService`: the transparency log over the wire.

If this fails: callers of one tenant read names, counts and digests of another's. Entries hold no row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.datasets.v1 import log_service_pb2_grpc as stubs
from casemate.errors import NotFound, OutOfRange, PermissionDenied, Reason
from casemate.gate.adapters.caller_context import current_caller
from casemate.signing.log_proof import write_log_proof
from services.datasets.lineage import RELEASE
from services.datasets.log import is_readable_by, parse_body
from services.keys.operations import HOUSE_TENANT

if TYPE_CHECKING:
    from services.datasets.checkpoints import Checkpoints
    from services.datasets.lineage import Lineage
    from services.datasets.log_store import LogStore

_LARGEST_INDEX = 2**63 - 1


class LogServicer(stubs.LogServiceServicer):
    """Append by services, checkpoint and entries for whoever may read the log."""

    def __init__(self, *, log: LogStore, lineage: Lineage, checkpoints: Checkpoints) -> None:
        self._log = log
        self._lineage = lineage
        self._checkpoints = checkpoints

    async def AppendEntry(  # noqa: N802  # the protocol's name
        self, request: messages.AppendEntryRequest, _context: object
    ) -> messages.AppendEntryResponse:
        """Appends in the name of the calling service; durable when answered."""
        service = current_caller().service
        if service is None:  # the policy admits services alone; not left to that alone
            raise PermissionDenied("an entry by no service", reason=Reason.CALLER_NOT_ALLOWED)
        body = parse_body(request.kind, request.body)
        if (request.kind, service) == (RELEASE, "inference"):
            return messages.AppendEntryResponse(index=await self._lineage.append_release(body))
        return messages.AppendEntryResponse(index=await self._log.append_alone(request.kind, body, by=service))

    async def GetCheckpoint(  # noqa: N802
        self, _request: messages.GetCheckpointRequest, _context: object
    ) -> messages.GetCheckpointResponse:
        """The present head, signed, and cosigned if the witness answers."""
        shown = await self._checkpoints.present()
        return messages.GetCheckpointResponse(
            checkpoint=shown.note, log_key=self._checkpoints.log_key, witness_key=self._checkpoints.witness_key
        )

    async def GetEntry(  # noqa: N802
        self, request: messages.GetEntryRequest, _context: object
    ) -> messages.GetEntryResponse:
        """One entry and its proof."""
        _require_possible(request.index, request.tree_size)
        entry, proof, size = await self._log.entry(request.index, request.tree_size)
        _require_readable(entry, request.index)
        return messages.GetEntryResponse(entry=entry, inclusion_proof=proof, tree_size=size)

    async def GetReceipt(  # noqa: N802
        self, request: messages.GetReceiptRequest, _context: object
    ) -> messages.GetReceiptResponse:
        """One entry, proven under a checkpoint that goes with it."""
        _require_possible(request.index)
        shown = await self._checkpoints.present()
        if request.index >= shown.size:
            raise OutOfRange(f"entry {request.index} of a tree of {shown.size}")
        entry, proof, _ = await self._log.entry(request.index, shown.size)
        _require_readable(entry, request.index)
        return messages.GetReceiptResponse(receipt=write_log_proof(request.index, entry, proof, shown.note))

    async def GetConsistencyProof(  # noqa: N802
        self, request: messages.GetConsistencyProofRequest, _context: object
    ) -> messages.GetConsistencyProofResponse:
        """That one tree is the beginning of another."""
        _require_possible(request.first_size, request.second_size)
        proof, size = await self._log.consistency(request.first_size, request.second_size)
        return messages.GetConsistencyProofResponse(consistency_proof=proof, second_size=size)

    async def GetTile(self, request: messages.GetTileRequest, _context: object) -> messages.GetTileResponse:  # noqa: N802
        """A tile of hashes."""
        _require_possible(request.index)
        return messages.GetTileResponse(hashes=await self._log.tile(request.level, request.index))

    async def ListEntries(  # noqa: N802
        self, request: messages.ListEntriesRequest, _context: object
    ) -> messages.ListEntriesResponse:
        """Entries in order; of another tenant's, the hash alone."""
        _require_possible(request.first)
        tenant = current_caller().tenant
        found = await self._log.entries(request.first)
        return messages.ListEntriesResponse(
            entries=[entry if is_readable_by(tenant, entry, house=HOUSE_TENANT) else b"" for entry, _ in found],
            leaf_hashes=[leaf_hash for _, leaf_hash in found],
        )


def _require_readable(entry: bytes, index: int) -> None:
    if not is_readable_by(current_caller().tenant, entry, house=HOUSE_TENANT):
        raise NotFound(f"entry {index} is another tenant's")


def _require_possible(*numbers: int) -> None:
    """Keeps what no log holds, and no bigint, away from the database."""
    if max(numbers) > _LARGEST_INDEX:
        raise OutOfRange("beyond any log")
