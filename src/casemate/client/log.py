"""Reading the transparency log over the wire. Nothing here is believed: `saved_log` verifies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc

from casemate.client.saved_log import ShownEntry
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.datasets.v1.log_service_pb2_grpc import LogServiceStub
from casemate.errors import StoredDataUnreadable
from casemate.transport.status import from_rpc_error

if TYPE_CHECKING:
    from casemate.client.session import Session


class LogReader:
    """The log of the session's datasets service."""

    def __init__(self, session: Session) -> None:
        self._stub = LogServiceStub(session.channel("datasets"))
        self.origin = f"{session.service_name('datasets')}/log"

    def checkpoint(self) -> messages.GetCheckpointResponse:
        """The present checkpoint, and the keys that the service says it is signed with."""
        try:
            return self._stub.GetCheckpoint(messages.GetCheckpointRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def receipt(self, index: int) -> str:
        """The receipt of an entry.

        Raises:
            OutOfRange: there is no such entry.
        """
        try:
            return self._stub.GetReceipt(messages.GetReceiptRequest(index=index)).receipt
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def consistency(self, first_size: int, second_size: int) -> list[bytes]:
        """What the service offers as a proof that one tree begins the other.

        Raises:
            OutOfRange: the log is not that large: it was cut short, or another log answers.
        """
        request = messages.GetConsistencyProofRequest(first_size=first_size, second_size=second_size)
        try:
            return list(self._stub.GetConsistencyProof(request).consistency_proof)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def entries(self, first: int, end: int) -> Iterator[ShownEntry]:
        """The entries from `first` to before `end`, in order."""
        while first < end:
            try:
                found = self._stub.ListEntries(messages.ListEntriesRequest(first=first))
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            if not found.entries or len(found.entries) != len(found.leaf_hashes):
                raise StoredDataUnreadable("the log ended before its checkpoint says")
            shown = [
                ShownEntry(leaf_hash, entry or None)
                for entry, leaf_hash in zip(found.entries, found.leaf_hashes, strict=True)
            ]
            yield from shown[: end - first]
            first += len(shown)
