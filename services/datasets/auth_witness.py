"""The auth service as the log's witness, over the channel that its name was proven on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc

from casemate.auth.v1 import witness_service_pb2 as messages
from casemate.auth.v1.witness_service_pb2_grpc import WitnessServiceStub
from casemate.transport.status import from_rpc_error
from services.datasets.checkpoints import WitnessAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_SECONDS: Final = 3.0
"""A caller waits for a checkpoint; the witness is worth this much of the wait."""


class AuthWitness:
    """Asks auth to cosign. Implements `checkpoints.Witness`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = WitnessServiceStub(channel)

    async def cosign(self, *, checkpoint: str, old_size: int, proof: Sequence[bytes], log_key: str) -> WitnessAnswer:
        """See `checkpoints.Witness`."""
        request = messages.CosignCheckpointRequest(
            checkpoint=checkpoint, old_size=old_size, consistency_proof=proof, log_key=log_key
        )
        try:
            answer = await asyncio.to_thread(self._stub.CosignCheckpoint, request, timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return WitnessAnswer(answer.cosignature, answer.known_size, answer.witness_key)
