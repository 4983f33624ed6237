"""`casemate.auth.v1.WitnessService`: cosignatures for the transparency log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.auth.v1 import witness_service_pb2 as messages
from casemate.auth.v1.witness_service_pb2_grpc import WitnessServiceServicer
from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from services.auth.witness import Witness

_MAXIMUM_HASHES = 128  # a consistency proof in a tree of 2^63 has fewer
_LARGEST_SIZE = 2**63 - 1


class WitnessServicer(WitnessServiceServicer):
    """For datasets alone, by its certificate."""

    def __init__(self, *, witness: Witness) -> None:
        self._witness = witness

    async def CosignCheckpoint(  # noqa: N802  # the protocol's name
        self, request: messages.CosignCheckpointRequest, _context: object
    ) -> messages.CosignCheckpointResponse:
        """Cosigns what extends the last checkpoint, or says what is known."""
        if len(request.consistency_proof) > _MAXIMUM_HASHES or request.old_size > _LARGEST_SIZE:
            violation = FieldViolation("consistency_proof", "is longer than any proof")
            raise InvalidRequest("no proof", violations=(violation,))
        answer = await self._witness.cosign(
            request.checkpoint,
            old_size=request.old_size,
            proof=list(request.consistency_proof),
            log_key=request.log_key,
        )
        return messages.CosignCheckpointResponse(
            cosignature=answer.cosignature, known_size=answer.known_size, witness_key=self._witness.verification_key
        )
