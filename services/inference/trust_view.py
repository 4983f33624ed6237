"""What the trust feed says about models, asked in the service's own words."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate.errors import FailedPrecondition, NotFound, PermissionDenied, Reason, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from casemate.gate.core.caller import Caller
    from casemate.gate.core.records import Release, ReleasedVersion
    from casemate.gate.core.trust import TrustSnapshot, TrustState
    from casemate.signing.signers import Signer


class TrustView:
    """Releases and publishers as the feed last told them."""

    def __init__(self, state: TrustState) -> None:
        self._state = state
        self._changed = threading.Condition()
        state.subscribe(self._wake)

    @property
    def known(self) -> bool:
        """Whether the feed has told anything yet."""
        return bool(self._state.current.epoch)

    def releases(self) -> Iterable[Release]:
        """All releases of all tenants."""
        return self._state.current.releases.values()

    def release(self, tenant: str, model: str) -> Release | None:
        """The release of one model, or None."""
        return self._state.current.releases.get((tenant, model))

    def signer(self, key_id: str) -> Signer | None:
        """The signer with this key id, or None."""
        return self._state.current.signers.get(key_id)

    def version(self, tenant: str, model: str, number: int) -> ReleasedVersion | None:
        """The released version of this number, or None."""
        release = self.release(tenant, model)
        if release is None:
            return None
        return next((version for version in release.versions if version.number == number), None)

    def may(self, caller: Caller, verb: str, resource: str, *, now: datetime) -> bool:
        """Whether a grant gives the caller `verb` on a resource of its own tenant: for lists, beside the gate."""
        if caller.tenant is None:
            return False
        try:
            self._state.current.grants.authorize(
                tenant=caller.tenant, caller_path=caller.path, verb=verb, resource=resource, now=now
            )
        except NotFound:
            return False
        return True

    def require_trusted(self, tenant: str, version: ReleasedVersion) -> None:
        """Returns when the publisher's signature counted at the moment the release was recorded.

        Raises:
            FailedPrecondition: reason MODEL_REFUSED: unknown, another tenant's, out of its window, or
                compromised since a moment before.
        """
        signer = self.signer(version.signer_key_id)
        if signer is None or signer.tenant != tenant or signer.role != "publisher":
            raise FailedPrecondition("released under a key that is no publisher's", reason=Reason.MODEL_REFUSED)
        try:
            signer.judge(version.recorded_at)
        except PermissionDenied as error:
            raise FailedPrecondition(str(error), reason=Reason.MODEL_REFUSED) from error

    def wait_for(self, tenant: str, model: str, number: int, *, timeout: timedelta) -> ReleasedVersion:
        """The released version, as soon as the feed has brought it.

        Raises:
            Unavailable: it did not within `timeout`.
        """
        found: list[ReleasedVersion] = []

        def arrived() -> bool:
            version = self.version(tenant, model, number)
            if version is not None:
                found.append(version)
            return version is not None

        with self._changed:
            if not self._changed.wait_for(arrived, timeout.total_seconds()):
                raise Unavailable("the trust feed has not brought the release yet")
        return found[-1]

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` after every change, from the thread of the feed; it must not block.

        Returns:
            What ends the subscription.
        """
        return self._state.subscribe(lambda _snapshot: callback())

    def _wake(self, _snapshot: TrustSnapshot) -> None:
        with self._changed:
            self._changed.notify_all()
