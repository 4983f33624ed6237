"""Which models there are for a caller, and in what state: released by the feed's word, loaded or not here.

If this fails: a caller learns names of its own tenant's models that no grant shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import FailedPrecondition, FieldViolation, InvalidRequest
from casemate.inference.v1 import model_service_pb2 as messages
from services.inference.names import is_name
from services.inference.publishing import tenant_of
from services.inference.repository import Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.clock import Clock
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.records import Release, ReleasedVersion
    from services.inference.catalogue import Catalogue
    from services.inference.trust_view import TrustView
    from services.inference.watcher import Watcher

READY = "READY"
LOADING = "LOADING"
UNAVAILABLE = "UNAVAILABLE"

DEFAULT_PAGE, LARGEST_PAGE = 100, 500

_STATES = {
    READY: messages.VERSION_STATE_READY,
    LOADING: messages.VERSION_STATE_LOADING,
    UNAVAILABLE: messages.VERSION_STATE_UNAVAILABLE,
}


class Index:
    """The releases that callers may describe.

    Args:
        trust: releases and grants.
        catalogue: what is loaded.
        watcher: knows whose loads take long.
        clock: judges grants.
    """

    def __init__(self, *, trust: TrustView, catalogue: Catalogue, watcher: Watcher, clock: Clock) -> None:
        self._trust = trust
        self._catalogue = catalogue
        self._watcher = watcher
        self._clock = clock

    def describable(self, caller: Caller) -> Iterator[Release]:
        """Releases of the caller's own tenant that it has a grant to describe, by name."""
        now = self._clock.now()
        tenant = tenant_of(caller)
        for release in sorted(self._trust.releases(), key=lambda release: release.model):
            if release.tenant == tenant and self._trust.may(caller, "describe", f"model/{release.model}", now=now):
                yield release

    def versions(self, release: Release) -> Iterator[tuple[ReleasedVersion, str, str]]:
        """Each released version with its state, and why it is not ready where it is not."""
        loaded = self._catalogue.entry((release.tenant, release.model)).versions
        overdue = self._watcher.overdue
        for version in release.versions:
            if version.number in loaded:
                rests = loaded[version.number].rests()
                yield version, *((UNAVAILABLE, "ended the service's processes, and rests") if rests else (READY, ""))
            elif Slot(release.tenant, release.model, version.number) in overdue:
                yield version, LOADING, "its load has not ended yet, and holds up no other"
            else:
                yield version, UNAVAILABLE, self._why_not(release.tenant, version)

    def list_models(self, caller: Caller, request: messages.ListModelsRequest) -> bytes:
        """One page of what the caller may describe; the serialized ListModelsResponse.

        Raises:
            InvalidRequest: the token is of no page.
        """
        if request.page_token and not is_name(request.page_token):
            raise InvalidRequest(violations=(FieldViolation("page_token", "is not one of these pages"),))
        most = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        response = messages.ListModelsResponse()
        for release in self.describable(caller):
            if release.model <= request.page_token:
                continue
            if len(response.models) == most:
                response.next_page_token = response.models[-1].name
                break
            listed = response.models.add(name=release.model, labels=release.labels)
            for version, state, reason in self.versions(release):
                listed.versions.add(
                    number=version.number,
                    state=_STATES[state],
                    reason=reason,
                    manifest_sha256=version.manifest_sha256,
                    signer_key_id=version.signer_key_id,
                )
        return response.SerializeToString()

    def _why_not(self, tenant: str, version: ReleasedVersion) -> str:
        try:
            self._trust.require_trusted(tenant, version)
        except FailedPrecondition:
            return "withdrawn"
        return "released, not loaded here"
