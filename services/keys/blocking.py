"""`casemate.keys.v1.KeyService` on the synchronous server, its work on another thread's event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from casemate.gate.adapters.caller_context import current_caller
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.keys.v1 import key_service_pb2_grpc as stubs
from casemate.transport.registry import RegisteredService, registered
from services.keys.operations import KeyOperations, require_operator

KEY_SERVICE = "casemate.keys.v1.KeyService"

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from typing import Any, Protocol

    T = TypeVar("T")

    class Run(Protocol):
        """Runs a coroutine where the key-encryption key lives, and waits for it."""

        def __call__(self, call: Coroutine[Any, Any, T], /) -> T:
            """Its result."""
            ...


class BlockingKeyServicer(stubs.KeyServiceServicer):
    """Shows and renews what the service keeps wrapped, for operators."""

    def __init__(self, operations: KeyOperations, run: Run) -> None:
        self._operations = operations
        self._run = run

    def GetKekStatus(  # noqa: N802  # the protocol's name
        self, _request: messages.GetKekStatusRequest, _context: object
    ) -> messages.GetKekStatusResponse:
        """What is wrapped under what."""
        require_operator(current_caller())
        return self._run(self._operations.status())

    def RewrapKeys(  # noqa: N802
        self, _request: messages.RewrapKeysRequest, _context: object
    ) -> Iterator[messages.RewrapKeysResponse]:
        """Progress after each page."""
        require_operator(current_caller())
        work = self._operations.rewrap()
        while (progress := self._run(_following(work))) is not None:
            yield progress


async def _following(
    work: AsyncIterator[messages.RewrapKeysResponse],
) -> messages.RewrapKeysResponse | None:
    return await anext(work, None)


def blocking_key_service(operations: KeyOperations, run: Run) -> RegisteredService:
    """The service as the synchronous server takes it."""
    return registered(stubs.add_KeyServiceServicer_to_server, BlockingKeyServicer(operations, run))
