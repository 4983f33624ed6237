"""What the rpcs of KeyService do, whichever server carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import PermissionDenied, Reason
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.sealing.kek import KekStatus
from casemate.sealing.rewrapping import rewrap_all, survey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from casemate.gate.core.caller import Caller
    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.sealing.rewrapping import WrapStore

HOUSE_TENANT = "casemate"
"""The operators' own tenant."""

_STATUS = {
    KekStatus.ENABLED: messages.KEK_STATUS_ENABLED,
    KekStatus.DISABLED: messages.KEK_STATUS_DISABLED,
    KekStatus.PENDING_DELETION: messages.KEK_STATUS_PENDING_DELETION,
    KekStatus.DESTROYED: messages.KEK_STATUS_DESTROYED,
}


class KeyOperations:
    """Shows and renews what one service keeps wrapped.

    Args:
        kek: the service's key-encryption key.
        stores: everything that it wraps.
    """

    def __init__(self, *, kek: KeyEncryptionKey, stores: Sequence[WrapStore]) -> None:
        self._kek = kek
        self._stores = stores

    async def status(self) -> messages.GetKekStatusResponse:
        """What the provider says, and what is wrapped under what."""
        state = await self._kek.state()
        found = await survey(self._stores)
        order = sorted(found, key=lambda under: (under.purpose, under.kek_id, under.kek_version))
        return messages.GetKekStatusResponse(
            kek_id=state.kek_id,
            current_version=state.current_version,
            status=_STATUS[state.status],
            is_for_development=state.is_for_development,
            wrapped=[
                messages.WrappedUnder(
                    purpose=under.purpose, kek_id=under.kek_id, kek_version=under.kek_version, keys=found[under]
                )
                for under in order
            ],
        )

    async def rewrap(self) -> AsyncIterator[messages.RewrapKeysResponse]:
        """Wraps anew what is not under the current version; tells how far it is."""
        async for progress in rewrap_all(self._kek, self._stores):
            yield messages.RewrapKeysResponse(
                seen=progress.seen, total=progress.total, rewrapped=progress.rewrapped, failed=progress.failed
            )


def require_operator(caller: Caller) -> None:
    """Returns if the caller is of the house tenant: keys of the service are no tenant's own.

    Raises:
        PermissionDenied: it is not.
    """
    if caller.tenant != HOUSE_TENANT:
        raise PermissionDenied("operators of the house tenant alone", reason=Reason.CALLER_NOT_ALLOWED)
