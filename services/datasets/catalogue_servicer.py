"""The part of `DatasetService` that moves no rows: the list, labels, lineage, reports, Croissant, retention."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1 import dataset_service_pb2_grpc as stubs
from casemate.errors import NotFound
from casemate.gate.adapters.caller_context import current_caller
from casemate.signing.fields import NAME
from services.datasets.answers import by_caller, callers_tenant, invalid, listed, timestamp, trained_model
from services.datasets.croissant import croissant
from services.datasets.labels import Move
from services.datasets.schedules import Schedule
from services.datasets.upload import UploadState
from services.keys.operations import HOUSE_TENANT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from casemate.gate.core.trust import TrustState
    from services.datasets.labels import LabelStore
    from services.datasets.lineage import Lineage
    from services.datasets.listing import DatasetListing
    from services.datasets.pull import Reader
    from services.datasets.schedules import ScheduleStore
    from services.datasets.signer_report import SignerReport
    from services.datasets.store import VersionStore
    from services.datasets.versions import Versions

MAXIMUM_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What these calls stand on. `service` is the name of this service, which documents point to."""

    service: str
    reader: Reader
    store: VersionStore
    versions: Versions
    labels: LabelStore
    listing: DatasetListing
    lineage: Lineage
    reports: SignerReport
    schedules: ScheduleStore
    trust: TrustState


class CatalogueCalls(stubs.DatasetServiceServicer):
    """Those methods; `DatasetServicer` has the others."""

    _catalogue: Catalogue

    async def ListDatasets(  # noqa: N802  # the protocol's name
        self, request: messages.ListDatasetsRequest, _context: object
    ) -> messages.ListDatasetsResponse:
        """What the caller may read."""
        page = await self._catalogue.listing.page(
            current_caller(), callers_tenant(), size=request.page_size, token=request.page_token
        )
        return messages.ListDatasetsResponse(datasets=map(listed, page.newest), next_page_token=page.token)

    async def SetLabel(  # noqa: N802
        self, request: messages.SetLabelRequest, _context: object
    ) -> messages.SetLabelResponse:
        """Moves a label to a version that can be read now, or takes it away."""
        tenant, here = callers_tenant(), self._catalogue
        _require_possible(request.version, request.expected_version)
        if "\x00" in request.dataset:
            raise NotFound("no dataset has such a name")
        move = Move(
            tenant=tenant,
            dataset=request.dataset,
            label=request.label,
            version=request.version,
            expected=request.expected_version,
        )
        if request.version:
            await here.reader.readable(tenant=tenant, dataset=request.dataset, version=request.version)
        labels, index = await here.labels.move(move, by=by_caller())
        return messages.SetLabelResponse(labels=labels, log_index=index)

    async def ListLabels(  # noqa: N802
        self, request: messages.ListLabelsRequest, _context: object
    ) -> messages.ListLabelsResponse:
        """The labels that were set."""
        if "\x00" in request.dataset:
            raise NotFound("no dataset has such a name")
        return messages.ListLabelsResponse(labels=await self._catalogue.labels.all(callers_tenant(), request.dataset))

    async def GetLineage(  # noqa: N802
        self, request: messages.GetLineageRequest, _context: object
    ) -> messages.GetLineageResponse:
        """Where a version comes from and where it went; a quarantined one is described by its number."""
        tenant, here = callers_tenant(), self._catalogue
        _require_possible(request.version)
        quarantined = False
        try:
            found = await here.versions.described(
                current_caller(), tenant, dataset=request.dataset, version=request.version, label=request.label
            )
            upload = found.upload
            previous = found.manifest.manifest.previous_root
        except NotFound:
            # Quarantined: its rows are nobody's business, and what was trained on it is all the more.
            stored = None
            if request.version and "\x00" not in request.dataset:
                stored = await here.store.version(tenant, request.dataset, request.version)
            if stored is None or stored.state not in {UploadState.PROMOTED, UploadState.SHREDDED}:
                raise
            here.versions.require_grant(current_caller(), stored)
            upload, previous, quarantined = stored, None, True
        models = await here.lineage.trained_on(tenant, upload.root)
        return messages.GetLineageResponse(
            version=upload.version,
            root=upload.root,
            previous_root=previous or b"",
            signer_key_id=upload.signer_key_id,
            quarantined=quarantined,
            models=[trained_model(model, here.trust.current) for model in models],
        )

    async def ReportSigner(  # noqa: N802
        self, request: messages.ReportSignerRequest, _context: object
    ) -> AsyncIterator[messages.ReportSignerResponse]:
        """What a key signed since a date, version by version."""
        here, tenant = self._catalogue, callers_tenant()
        try:
            since = request.since.ToDatetime(tzinfo=UTC) if request.HasField("since") else None
        except (ValueError, OverflowError):
            raise invalid("since", "not a moment") from None
        whose = None if tenant == HOUSE_TENANT else tenant
        async for affected in here.reports.report(request.key_id, since, tenant=whose):
            yield messages.ReportSignerResponse(
                tenant=affected.tenant,
                dataset=affected.dataset,
                version=affected.version,
                root=affected.root,
                promoted_at=timestamp(affected.promoted_at),
                quarantined=affected.quarantined,
                shredded=affected.shredded,
                models=[trained_model(model, here.trust.current) for model in affected.models],
            )

    async def GetCroissant(  # noqa: N802
        self, request: messages.GetCroissantRequest, _context: object
    ) -> messages.GetCroissantResponse:
        """A version's Croissant document."""
        found = await self._catalogue.versions.described(
            current_caller(), callers_tenant(), dataset=request.dataset, version=request.version, label=request.label
        )
        return messages.GetCroissantResponse(json_ld=croissant(found, service=self._catalogue.service))

    async def SetRetention(  # noqa: N802
        self, request: messages.SetRetentionRequest, _context: object
    ) -> messages.SetRetentionResponse:
        """Sets how long versions are kept. A name that no dataset can have is not found: else a slip sets nothing."""
        _require_possible(request.keep_versions)
        if not NAME.fullmatch(request.dataset):
            raise NotFound("no dataset has such a name")
        schedule = Schedule(
            tenant=callers_tenant(),
            dataset=request.dataset,
            keep_versions=request.keep_versions,
            keep_for_seconds=request.keep_for.ToSeconds() if request.HasField("keep_for") else None,
        )
        index = await self._catalogue.schedules.set(schedule, by=by_caller())
        return messages.SetRetentionResponse(log_index=index)


def _require_possible(*numbers: int) -> None:
    """Keeps what no version is, and no bigint, away from the database."""
    if max(numbers) > MAXIMUM_VERSION:
        raise NotFound("no such version")
