"""Takes a signed model in: verify, receive, try, seal, release, log, load.

Nothing of an upload is written before the manifest was verified and every byte
compared with it; what is written can be served only once auth has recorded it.

If this fails: bytes that nobody signed lie sealed in the repository; the loader
compares them with the released manifest again and refuses.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from casemate.errors import (
    AlreadyExists,
    DigestMismatch,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
)
from casemate.inference.v1 import model_service_pb2
from casemate.signing.statements import verify_model_manifest
from services.inference.names import is_version_file, require_name, says_what_runs
from services.inference.repository import Slot
from services.inference.vault import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.clock import Clock
    from casemate.gate.core.caller import Caller
    from casemate.signing.statements import FileDigest, ModelManifest, VerifiedModelManifest
    from services.inference.building import Build
    from services.inference.dependencies import Datasets, Releases
    from services.inference.preparation import Preparation
    from services.inference.streams import Stream, Streams
    from services.inference.trust_view import TrustView
    from services.inference.vault import Vault
    from services.inference.watcher import Watcher

    Request = model_service_pb2.PublishModelRequest

MAX_PIECE_BYTES = 1024 * 1024
_EXPIRY_MARGIN = timedelta(seconds=30)
"""A manifest must outlive the recording by this much: the loader judges it by the time that auth writes."""


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Caps on uploads.

    Attributes:
        version_bytes: of all files of one version, which are held in memory while they are checked.
        files: in one version.
        feed_wait: how long the feed may take to bring the release back.
    """

    version_bytes: int = 256 * 1024 * 1024
    files: int = 32
    feed_wait: timedelta = timedelta(seconds=10)


class Publishing:
    """The host-free side of ModelService.

    Args:
        trust: publishers and releases.
        releases: auth's record.
        datasets: datasets' word on roots, and the log.
        vault: where sealed files go.
        watcher: loads what was released.
        build: makes an instance of a version, as a trial.
        prepare: warms it up as its files say, as a trial.
        audience: the audience that manifests must name.
        clock: judges signers and expiry.
        limits: caps on uploads.
        uploads: those that run. One whose peer sends nothing is cut, and no tenant takes every place.
    """

    def __init__(
        self,
        *,
        trust: TrustView,
        releases: Releases,
        datasets: Datasets,
        vault: Vault,
        watcher: Watcher,
        build: Build,
        prepare: Preparation,
        audience: str,
        clock: Clock,
        limits: PublishLimits,
        uploads: Streams,
    ) -> None:
        self._trust = trust
        self._releases = releases
        self._datasets = datasets
        self._vault = vault
        self._watcher = watcher
        self._build = build
        self._prepare = prepare
        self._audience = audience
        self._clock = clock
        self._limits = limits
        self._uploads = uploads

    def publish(
        self,
        caller: Caller,
        requests: Iterator[Request],
        *,
        end: Callable[[Exception], object] = lambda _error: None,
        cancel: Callable[[], object] = lambda: None,
    ) -> bytes:
        """Publishes one version; the serialized PublishModelResponse once this replica serves it.

        From another thread, `end` has the wait for the next message end by an error, and `cancel` ends the call.

        Publishing the same manifest again, after an answer was lost, succeeds.

        Raises:
            InvalidRequest: manifest, model, or the order of messages.
            DigestMismatch: the bytes are not those of the manifest.
            PermissionDenied: the publisher is not trusted.
            FailedPrecondition: a dataset root is unknown, or the number is not the next one.
            AlreadyExists: the number is taken.
            Conflict: another publisher was first.
            Exhausted: too many uploads at once.
            Unavailable: auth, datasets, the trust feed or the key-encryption key.
            DeadlineExceeded: reason STREAM_IDLE: nothing more was sent.
        """
        with self._uploads.enter(end, cancel=cancel, tenant=tenant_of(caller)) as upload:
            requests = self._awaited(requests, upload)
            slot, envelope, verified = self._receive_manifest(caller, requests)
            files = receive_files(requests, verified.manifest)
            with self._prepare.loading(files):
                self._prepare(self._build(slot.tenant, files), files)
            self._verify(envelope, slot.tenant, slot.model, margin=_EXPIRY_MARGIN)
            if not self._loads(slot):
                # Another may be released while this one is sealed: it keeps its place.
                free = partial(self._require_free, slot, verified)
                self._vault.store(slot, manifest=envelope, files=files, still=free)
        digest, signer = verified.payload_sha256, verified.signer_key_id
        self._releases.record(slot, manifest_sha256=digest, signer_key_id=signer)
        # The log has each release once: of what is sent again after an answer was lost, it gives the same index.
        index = self._datasets.log_release(
            slot, manifest_sha256=digest, signer_key_id=signer, dataset_roots=verified.manifest.dataset_roots
        )
        self._trust.wait_for(slot.tenant, slot.model, slot.number, timeout=self._limits.feed_wait)
        try:
            self._watcher.load(slot)
        except FailedPrecondition:
            # One that came second may have taken the place in the moment before this one was released.
            self._vault.store(slot, manifest=envelope, files=files)
            self._watcher.load(slot)
        return model_service_pb2.PublishModelResponse(
            number=slot.number, manifest_sha256=digest, log_index=index
        ).SerializeToString()

    def reload(self, caller: Caller, request: model_service_pb2.ReloadModelRequest) -> bytes:
        """Loads a released version from the repository again; the serialized ReloadModelResponse.

        Raises:
            NotFound: it is not released.
            FailedPrecondition: reason MODEL_REFUSED; what ran before still runs.
        """
        number = self.load_released(caller, request.model, request.number)
        return model_service_pb2.ReloadModelResponse(number=number).SerializeToString()

    def load_released(self, caller: Caller, model: str, number: int) -> int:
        """Loads version `number` of a model of the caller's tenant, for zero the one that is meant; its number."""
        tenant = tenant_of(caller)
        require_name(model, field="model")
        if not number:
            number = self._watcher.meant(tenant, model)
        self._watcher.load_and_keep(Slot(tenant, model, number))
        return number

    def _awaited(self, requests: Iterator[Request], upload: Stream) -> Iterator[Request]:
        """The messages; while one is awaited, the upload counts as idle."""
        while True:
            upload.waits(self._uploads.now())
            request = next(requests, None)
            upload.works()
            if request is None:
                return
            yield request

    def _receive_manifest(
        self, caller: Caller, requests: Iterator[Request]
    ) -> tuple[Slot, bytes, VerifiedModelManifest]:
        first = next(requests, None)
        if first is None or first.WhichOneof("step") != "manifest":
            raise _invalid("manifest", "must come first")
        if len(first.manifest) > MAX_MANIFEST_BYTES:
            raise _invalid("manifest", "is longer than a manifest may be")
        tenant = tenant_of(caller)
        model = require_name(first.model, field="model")
        verified = self._verify(first.manifest, tenant, model, margin=timedelta(0))
        manifest = verified.manifest
        check_files(manifest, self._limits)
        slot = Slot(tenant, model, manifest.number)
        self._require_free(slot, verified)
        if manifest.dataset_roots:
            self._datasets.require_roots(tenant, manifest.dataset_roots)
        return slot, first.manifest, verified

    def _verify(self, envelope: bytes, tenant: str, model: str, *, margin: timedelta) -> VerifiedModelManifest:
        return verify_model_manifest(
            envelope,
            audience=self._audience,
            tenant=tenant,
            model=model,
            resolve=self._trust.signer,
            now=self._clock.now() + margin,
        )

    def _loads(self, slot: Slot) -> bool:
        """Whether this very version is released and whole in the repository: replicas may be reading it."""
        try:
            self._watcher.load(slot)
        except (NotFound, FailedPrecondition):
            return False
        return True

    def _require_free(self, slot: Slot, verified: VerifiedModelManifest) -> None:
        """Spares an upload that auth would refuse, and the directory of a version that is served."""
        release = self._trust.release(slot.tenant, slot.model)
        digests = {version.number: version.manifest_sha256 for version in release.versions} if release else {}
        taken, following = digests.get(slot.number), max(digests, default=0) + 1
        if taken is None and slot.number != following:
            raise FailedPrecondition(
                f"{slot} is not the next number",
                reason=Reason.CONCURRENT_UPDATE,
                violations=_of_number(f"number {slot.number} is not the next, which is {following}"),
            )
        if taken is not None and not hmac.compare_digest(taken, verified.payload_sha256):
            raise AlreadyExists(
                f"{slot} is released with another manifest",
                violations=_of_number(f"number {slot.number} is taken; the next is {following}"),
            )


def _of_number(description: str) -> tuple[FieldViolation, ...]:
    return (FieldViolation("manifest.number", description),)


def tenant_of(caller: Caller) -> str:
    """The tenant whose models a call is about.

    Raises:
        PermissionDenied: the caller came without a token, which no policy here allows.
    """
    if caller.tenant is None:
        raise PermissionDenied("a caller without a tenant", reason=Reason.CALLER_NOT_ALLOWED)
    return caller.tenant


def check_files(manifest: ModelManifest, limits: PublishLimits) -> None:
    """Returns when the manifest lists files that can be a version.

    Raises:
        InvalidRequest: reason MODEL_INVALID.
    """
    names = [file.name for file in manifest.files]
    if not says_what_runs(names) or len(set(names)) != len(names) or len(names) > limits.files:
        raise _model_invalid("must list model.onnx or upstream.json, not both, and at most 32 files, each once")
    if not all(is_version_file(name) for name in names):
        raise _model_invalid("may list model.onnx and files ending in .json, .txt or .md only")
    if sum(file.bytes for file in manifest.files) > limits.version_bytes:
        raise _model_invalid("lists more bytes than a version may have")


def receive_files(requests: Iterator[Request], manifest: ModelManifest) -> dict[str, bytes]:
    """The files, each compared with its digest as soon as its last byte is there.

    Memory is bounded by the sizes in the signed manifest; a byte too many ends it.

    Raises:
        InvalidRequest: a message that is not data, or too much of it.
        DigestMismatch: a file is not the signed one, or the upload ends early.
    """
    pieces = _data(requests)
    rest = memoryview(b"")
    files: dict[str, bytes] = {}
    for expected in manifest.files:
        received = bytearray()
        while len(received) < expected.bytes:
            if not rest:
                rest = memoryview(next(pieces, b""))
                if not rest:
                    raise DigestMismatch("the upload ends early")
            wanted = expected.bytes - len(received)
            received += rest[:wanted]
            rest = rest[wanted:]
        files[expected.name] = _matching(bytes(received), expected)
    if rest or next(pieces, None) is not None:
        raise DigestMismatch("the upload is longer than the manifest says")
    return files


def _data(requests: Iterator[Request]) -> Iterator[bytes]:
    for request in requests:
        if request.WhichOneof("step") != "data" or not request.data or len(request.data) > MAX_PIECE_BYTES:
            raise _invalid("data", "must be 1 byte to 1 MiB in every message after the manifest")
        yield request.data


def _matching(data: bytes, expected: FileDigest) -> bytes:
    if not hmac.compare_digest(hashlib.sha256(data).digest(), expected.sha256):
        raise DigestMismatch(f"{expected.name} is not the signed file")
    return data


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {description}", violations=(FieldViolation(field, description),))


def _model_invalid(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"the manifest {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation("manifest.files", description),),
    )
