"""What operators see and do about a service's key-encryption key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from casemate.client.session import Session
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.keys.v1.key_service_pb2_grpc import KeyServiceStub
from casemate.transport.status import from_rpc_error

REWRAP_SECONDS = 3600.0
"""A rewrapping that takes longer is begun again, and goes on."""


@dataclass(frozen=True, slots=True)
class WrappedCount:
    """How many keys of one purpose one version wraps. An empty `kek_id`: not legible."""

    purpose: str
    kek_id: str
    kek_version: int
    keys: int


@dataclass(frozen=True, slots=True)
class KekReport:
    """A key-encryption key and what it wraps. Version 0: its provider does not tell. Or in a file: for development."""

    kek_id: str
    current_version: int
    status: str
    wrapped: tuple[WrappedCount, ...]
    is_for_development: bool = False

    @property
    def due(self) -> int:
        """Keys that are not under the current version."""
        current = (self.kek_id, self.current_version)
        return sum(count.keys for count in self.wrapped if (count.kek_id, count.kek_version) != current)


class ServiceKeys:
    """The key-encryption key of one service: `auth`, `datasets` or `inference`."""

    def __init__(self, session: Session, service: str) -> None:
        self._stub = KeyServiceStub(session.channel(service))

    def status(self) -> KekReport:
        """What is wrapped under what.

        Raises:
            PermissionDenied: the caller is no operator.
            Unavailable: the provider does not answer.
        """
        try:
            found = self._stub.GetKekStatus(messages.GetKekStatusRequest())
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        name = messages.KekStatus.Name(found.status).removeprefix("KEK_STATUS_")
        return KekReport(
            kek_id=found.kek_id,
            current_version=found.current_version,
            status=name,
            is_for_development=found.is_for_development,
            wrapped=tuple(
                WrappedCount(count.purpose, count.kek_id, count.kek_version, count.keys) for count in found.wrapped
            ),
        )

    def rewrap(self) -> Iterator[messages.RewrapKeysResponse]:
        """Wraps anew what is not under the current version; gives progress, the result last.

        Raises:
            Unavailable, FailedPrecondition: the provider. What was told is done.
        """
        try:
            yield from self._stub.RewrapKeys(messages.RewrapKeysRequest(), timeout=REWRAP_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
