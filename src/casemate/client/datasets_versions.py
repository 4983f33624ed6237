"""What there is of datasets: versions described, and shredded.

If this fails: a caller takes another version, or a receipt of another version, for the one that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from casemate.client.session import Session
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.errors import StoredDataUnreadable
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.shred_receipt import ShredReceipt, verify_shred_receipt
from casemate.transport.status import from_rpc_error


@dataclass(frozen=True, slots=True)
class ShreddedVersion:
    """A version that nothing opens any more, with the proof of it.

    Attributes:
        receipt: what the log's key signed.
        envelope: the receipt as signed, for keeping.
        log_key: the key that verifies it, `name+hash+base64`, as the service named it.
    """

    receipt: ShredReceipt
    envelope: bytes
    log_key: str


class DatasetVersions:
    """The versions of the datasets of the session's tenant."""

    def __init__(self, session: Session, *, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._stub = DatasetServiceStub(session.channel("datasets"))

    def describe(self, dataset: str, version: int = 0) -> messages.GetVersionResponse:
        """Describes a promoted version; zero is the latest.

        Raises:
            NotFound: there is none, or it is not granted.
        """
        try:
            return self._stub.GetVersion(messages.GetVersionRequest(dataset=dataset, version=version))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def shred(self, dataset: str, version: int) -> ShreddedVersion:
        """Destroys the data key of a version, for ever; repeated, it gives the same receipt.

        The receipt is verified under the key that the service names, which is the
        service's word: compare it with the log key that you know.

        Raises:
            NotFound: there is no such version, or it is not granted.
            Unavailable: the service will finish what was begun; ask again for the receipt.
        """
        request = messages.ShredVersionRequest(dataset=dataset, version=version)
        try:
            answer = self._stub.ShredVersion(request)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        log, key = parse_verification_key(answer.log_key)
        verified = verify_shred_receipt(bytes(answer.receipt), log=log, public_key=key)
        if (verified.receipt.dataset, verified.receipt.version) != (dataset, version):
            raise StoredDataUnreadable("the receipt is another version's")
        return ShreddedVersion(verified.receipt, bytes(answer.receipt), answer.log_key)
