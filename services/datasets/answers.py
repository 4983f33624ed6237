"""Messages of `DatasetService` from what the domain knows, and what every call begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import FieldViolation, InvalidRequest, PermissionDenied, Reason
from casemate.gate.adapters.caller_context import current_caller
from services.datasets.upload import UploadState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from casemate.gate.core.trust import TrustSnapshot
    from services.datasets.lineage import Trained
    from services.datasets.pull import ReadableVersion
    from services.datasets.upload import Upload


def callers_tenant() -> str:
    """The tenant of the call that runs: whose datasets it is about."""
    tenant = current_caller().tenant
    if tenant is None:  # the policy asks for a token, and each names a tenant; not left to that alone
        raise PermissionDenied("a call without a tenant", reason=Reason.CALLER_NOT_ALLOWED)
    return tenant


def by_caller() -> dict[str, object]:
    """Who calls, as an entry of the log says it; the audit has more under the request's id."""
    caller = current_caller()
    return {"caller": caller.spiffe_id, "client": caller.client_id, "request": caller.request_id}


def invalid(field: str, text: str) -> InvalidRequest:
    """The refusal of one field."""
    return InvalidRequest(f"{field}: {text}", violations=(FieldViolation(field, text),))


def promoted(upload: Upload) -> messages.PushDatasetResponse:
    """The last answer to a push."""
    return messages.PushDatasetResponse(
        next_offset=upload.next_offset,
        promoted=messages.PromotedVersion(
            version=upload.version, root=upload.root, rows=upload.row_count, log_index=upload.log_index or 0
        ),
    )


def description(readable: ReadableVersion, labels: Iterable[str] = ()) -> messages.GetVersionResponse:
    """What there is to say of a version."""
    upload = readable.upload
    return messages.GetVersionResponse(
        version=upload.version,
        manifest=readable.manifest.envelope,
        root=upload.root,
        rows=upload.row_count,
        promoted_at=timestamp(readable.promoted_at),
        signer_key_id=upload.signer_key_id,
        shredded_at=None if readable.shredded_at is None else timestamp(readable.shredded_at),
        labels=labels,
    )


def listed(upload: Upload) -> messages.ListedDataset:
    """A dataset by one version of it."""
    return messages.ListedDataset(
        dataset=upload.dataset,
        version=upload.version,
        root=upload.root,
        rows=upload.row_count,
        promoted_at=None if upload.promoted_at is None else timestamp(upload.promoted_at),
        shredded=upload.state is UploadState.SHREDDED,
    )


def trained_model(trained: Trained, trust: TrustSnapshot) -> messages.TrainedModel:
    """One model of a lineage, with what the trust feed says of it now."""
    release = trust.releases.get((trained.tenant, trained.model))
    released, labels = False, list[str]()
    if release is not None:
        released = any(
            (version.number, version.manifest_sha256) == (trained.model_number, trained.manifest_sha256)
            for version in release.versions
        )
        labels = sorted(
            label for label, number in release.labels.items() if released and number == trained.model_number
        )
    return messages.TrainedModel(
        model=trained.model,
        number=trained.model_number,
        manifest_sha256=trained.manifest_sha256,
        signer_key_id=trained.signer_key_id,
        log_index=trained.log_index,
        released=released,
        labels=labels,
    )


def timestamp(moment: datetime) -> Timestamp:
    """The message of a moment."""
    made = Timestamp()
    made.FromDatetime(moment)
    return made
