"""ReleaseService on the wire."""

from __future__ import annotations

from typing import Any

import grpc

from casemate.auth.v1 import release_service_pb2 as messages
from casemate.auth.v1.release_service_pb2_grpc import ReleaseServiceServicer
from casemate.gate.adapters.records import release_to_message
from services.auth.labels import Labels
from services.auth.listing import Listing
from services.auth.releases import Releases
from services.auth.servicer_admin import administrator
from services.auth.servicer_listing import place_of

Context = grpc.aio.ServicerContext[Any, Any]


class ReleaseServicer(ReleaseServiceServicer):
    """Translates; `Releases`, `Labels` and `Listing` decide."""

    def __init__(self, *, releases: Releases, labels: Labels, listing: Listing) -> None:
        self._listing = listing
        self._releases = releases
        self._labels = labels

    async def RecordRelease(  # noqa: N802  # the protocol's name
        self, request: messages.RecordReleaseRequest, _context: Context
    ) -> messages.RecordReleaseResponse:
        """Appends a version to a release."""
        release = await self._releases.record(
            tenant=request.tenant,
            model=request.model,
            number=request.version.number,
            manifest_sha256=request.version.manifest_sha256,
            signer_key_id=request.version.signer_key_id,
        )
        return messages.RecordReleaseResponse(release=release_to_message(release))

    async def SetLabel(  # noqa: N802  # the protocol's name
        self, request: messages.SetLabelRequest, _context: Context
    ) -> messages.SetLabelResponse:
        """Has a label name a version."""
        release = await self._labels.set(
            administrator(), envelope=request.envelope, signer_key_id=request.signer_key_id
        )
        return messages.SetLabelResponse(release=release_to_message(release))

    async def ListReleases(  # noqa: N802  # the protocol's name
        self, request: messages.ListReleasesRequest, _context: Context
    ) -> messages.ListReleasesResponse:
        """Lists releases."""
        page = await self._listing.releases(administrator(), place_of(request))
        releases = [release_to_message(release) for release in page.records]
        return messages.ListReleasesResponse(releases=releases, next_page_token=page.token)
