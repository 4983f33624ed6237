"""`casemate.keys.v1.KeyService` on grpc.aio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.gate.adapters.caller_context import current_caller
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.keys.v1 import key_service_pb2_grpc as stubs
from casemate.transport.registry import RegisteredService, registered
from services.keys.operations import KeyOperations, require_operator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class KeyServicer(stubs.KeyServiceServicer):
    """Shows and renews what the service keeps wrapped, for operators."""

    def __init__(self, operations: KeyOperations) -> None:
        self._operations = operations

    async def GetKekStatus(  # noqa: N802  # the protocol's name
        self, _request: messages.GetKekStatusRequest, _context: object
    ) -> messages.GetKekStatusResponse:
        """What is wrapped under what."""
        require_operator(current_caller())
        return await self._operations.status()

    async def RewrapKeys(  # noqa: N802
        self, _request: messages.RewrapKeysRequest, _context: object
    ) -> AsyncIterator[messages.RewrapKeysResponse]:
        """Progress after each page; a caller who goes away ends the work, which another call resumes."""
        require_operator(current_caller())
        async for progress in self._operations.rewrap():
            yield progress


def key_service(operations: KeyOperations) -> RegisteredService:
    """The service as the asynchronous server takes it."""
    return registered(stubs.add_KeyServiceServicer_to_server, KeyServicer(operations))
