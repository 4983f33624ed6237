"""Publishing signed models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import grpc

from casemate.client.pages import every_page
from casemate.client.session import Session
from casemate.clock import Clock, SystemClock
from casemate.errors import InvalidRequest
from casemate.inference.v1 import model_service_pb2 as messages
from casemate.inference.v1.model_service_pb2_grpc import ModelServiceStub
from casemate.signing.keys import SigningKey
from casemate.signing.statements import FileDigest, ModelManifest, sign_model_manifest
from casemate.transport.status import from_rpc_error

MANIFEST_LIFETIME = timedelta(hours=1)
"""How long a signed manifest may be used to publish."""

PIECE_BYTES = 1024 * 1024
PUBLISH_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A version that is now served."""

    model: str
    number: int
    manifest_sha256: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """A released version, as the replica that was asked sees it.

    Attributes:
        number: of the version.
        state: `ready`, `loading` (it takes long), `unavailable`, or `unspecified` from a later service.
        reason: why it is not ready.
        manifest_sha256: the version's digest.
        signer_key_id: key id of its publisher.
    """

    number: int
    state: str
    reason: str
    manifest_sha256: bytes
    signer_key_id: str


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model, its released versions by number, and what its labels name."""

    name: str
    versions: tuple[ListedVersion, ...]
    labels: Mapping[str, int]


class Models:
    """The models of the session's tenant.

    Args:
        session: of a client of the tenant.
        clock: dates manifests.
        page_size: of lists; 0 for what the service thinks good.
    """

    def __init__(self, session: Session, *, clock: Clock | None = None, page_size: int = 0) -> None:
        self._session = session
        self._page_size = page_size
        self._clock = clock or SystemClock()
        self._stub = ModelServiceStub(session.channel("inference"))

    def publish(
        self,
        files: Mapping[str, bytes],
        *,
        tenant: str,
        model: str,
        number: int,
        signing_key: SigningKey,
        dataset_roots: Sequence[bytes],
        metrics: Mapping[str, float],
    ) -> PublishedModel:
        """Signs and publishes one version; returns when the service serves it.

        Args:
            files: file names and their bytes; `model.onnx` is the model.
            tenant: the tenant that the model belongs to.
            model: its name.
            number: the number of this version, one more than the last.
            signing_key: a registered publisher's key.
            dataset_roots: roots of the dataset versions that it was trained on.
            metrics: measured quality, signed with the rest.

        Raises:
            InvalidRequest: manifest or model refused.
            PermissionDenied: the publisher is not trusted.
            FailedPrecondition: a dataset root is unknown, or the number is not the next one.
            AlreadyExists: the number is taken.
            Conflict: another publisher was first.
        """
        manifest = ModelManifest(
            audience=self._session.service_name("inference"),
            tenant=tenant,
            model=model,
            number=number,
            files=tuple(
                FileDigest(name=name, sha256=hashlib.sha256(data).digest(), bytes=len(data))
                for name, data in files.items()
            ),
            dataset_roots=tuple(dataset_roots),
            metrics=dict(metrics),
            expires_at=self._clock.now() + MANIFEST_LIFETIME,
        )
        envelope = sign_model_manifest(manifest, signing_key)
        return self.publish_envelope(envelope, files, model=model)

    def publish_envelope(self, envelope: bytes, files: Mapping[str, bytes], *, model: str) -> PublishedModel:
        """Publishes an envelope that was signed elsewhere, and its files in the manifest's order."""
        try:
            done = self._stub.PublishModel(
                _requests(envelope, files, model),
                timeout=PUBLISH_TIMEOUT_SECONDS,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return PublishedModel(model, done.number, done.manifest_sha256, done.log_index)

    def reload(self, model: str, number: int = 0) -> int:
        """Has the service verify and load a released version again; zero is the newest.

        Raises:
            FailedPrecondition: the stored bytes are not those that were signed; what ran before still runs.
        """
        if number < 0:
            raise InvalidRequest("a version number is not negative")
        try:
            return self._stub.ReloadModel(messages.ReloadModelRequest(model=model, number=number)).number
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def list(self) -> Iterator[ListedModel]:
        """The models that the caller may describe, by name, through every page."""

        def ask(token: str) -> messages.ListModelsResponse:
            request = messages.ListModelsRequest(page_size=self._page_size, page_token=token)
            try:
                return self._stub.ListModels(request)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

        for page in every_page(ask):
            yield from map(_listed, page.models)


def _listed(model: messages.ListedModel) -> ListedModel:
    versions = tuple(
        ListedVersion(
            version.number, _state(version.state), version.reason, version.manifest_sha256, version.signer_key_id
        )
        for version in model.versions
    )
    return ListedModel(model.name, versions, dict(model.labels))


def _state(state: messages.VersionState) -> str:
    known = state in messages.VersionState.values()
    return messages.VersionState.Name(state).removeprefix("VERSION_STATE_").lower() if known else "unspecified"


def _requests(envelope: bytes, files: Mapping[str, bytes], model: str) -> Iterator[messages.PublishModelRequest]:
    yield messages.PublishModelRequest(model=model, manifest=envelope)
    for data in files.values():
        for start in range(0, len(data), PIECE_BYTES):
            yield messages.PublishModelRequest(data=data[start : start + PIECE_BYTES])
