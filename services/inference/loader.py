"""From the repository to a running instance: verify, open in memory, compare, load those same bytes.

What may be loaded is a version that the trust feed names; the repository is
only where its bytes lie. Nothing is written, and no path is opened twice.

If this fails: a model runs that its publisher did not sign, or that was
withdrawn; the audit and the log still tell which version was released.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, FailedPrecondition, NotFound, Reason, StoredDataUnreadable, Unavailable
from casemate.signing.statements import verify_model_manifest
from services.inference.names import says_what_runs
from services.inference.repository import Slot
from services.inference.single_flight import SingleFlight
from services.inference.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.gate.core.records import ReleasedVersion
    from casemate.signing.statements import ModelManifest
    from services.inference.batcher import Batcher
    from services.inference.building import Build
    from services.inference.instance import Instance
    from services.inference.preparation import Preparation
    from services.inference.serving import Serving
    from services.inference.training_data import TrainingData
    from services.inference.trust_view import TrustView
    from services.inference.vault import OpenedVersion, Vault

_LOGGER = logging.getLogger(__name__)
_SEAL = object()


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """Files whose every byte is what a trusted publisher signed and the feed released; made by `Loader` alone."""

    slot: Slot
    manifest: ModelManifest
    manifest_sha256: bytes
    signer_key_id: str
    files: Mapping[str, bytes] = field(repr=False)
    seal: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("a VerifiedModel is made by the loader")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One version in memory, ready to run."""

    slot: Slot
    manifest_sha256: bytes
    signer_key_id: str
    dataset_roots: tuple[bytes, ...]
    instance: Instance
    serving: Serving
    batcher: Batcher
    statistics: Statistics = field(default_factory=Statistics)
    rests: Callable[[], bool] = lambda: False


class Loader:
    """Loads released versions.

    Args:
        vault: where the sealed files are.
        trust: what may be served.
        training: what is known of the data that models were trained on.
        audience: the audience that manifests must name.
        build: makes an instance of a version's files.
        prepare: warms an instance up as its version's files say.
        integrity_failed: called once for each refusal that means changed or withdrawn bytes.
    """

    def __init__(
        self,
        *,
        vault: Vault,
        trust: TrustView,
        training: TrainingData,
        audience: str,
        build: Build,
        prepare: Preparation,
        integrity_failed: Callable[[], None],
    ) -> None:
        self._vault = vault
        self._trust = trust
        self._training = training
        self._audience = audience
        self._build = build
        self._prepare = prepare
        self._integrity_failed = integrity_failed
        self._flights: SingleFlight[LoadedModel] = SingleFlight()

    def load(self, slot: Slot) -> LoadedModel:
        """A new instance of the version; callers at the same time share one load.

        Raises:
            NotFound: the feed names no such version.
            FailedPrecondition: reason MODEL_REFUSED: anything is not as signed and released; reason
                DATASET_UNKNOWN: it was trained on a dataset that is quarantined.
            Unavailable: the key-encryption key does not answer.
        """
        return self._flights.call(slot, lambda: self._load(slot))

    def _load(self, slot: Slot) -> LoadedModel:
        released = self._trust.version(slot.tenant, slot.model, slot.number)
        if released is None:
            raise NotFound(f"{slot} is not released")
        try:
            model = self._verify(slot, released)
        except (NotFound, Unavailable):
            raise
        except CasemateError as error:
            if error.reason in (Reason.KEY_NOT_ACTIVE, Reason.DATASET_UNKNOWN):
                raise  # its bytes are those that were signed
            # Whatever is wrong, it was right when it was published: somebody changed it, or trust in it ended.
            self._integrity_failed()
            raise _refused(slot, error) from error
        try:
            with self._prepare.loading(model.files):
                instance = self._build(slot.tenant, model.files)
                prepared = self._prepare(instance, model.files)
        except Unavailable:
            raise
        except CasemateError as error:
            # Its bytes are those that were signed, and this service, as it is now, does not take them.
            raise _refused(slot, error) from error
        return LoadedModel(
            slot,
            model.manifest_sha256,
            model.signer_key_id,
            model.manifest.dataset_roots,
            instance,
            prepared.serving,
            prepared.batcher,
            rests=prepared.rests,
        )

    def _verify(self, slot: Slot, released: ReleasedVersion) -> VerifiedModel:
        self._trust.require_trusted(slot.tenant, released)
        with self._vault.read(slot) as stored:
            verified = verify_model_manifest(
                stored.manifest(),
                audience=self._audience,
                tenant=slot.tenant,
                model=slot.model,
                resolve=self._trust.signer,
                # Judged at the moment it was recorded: what expires is the right to publish, not the model.
                now=released.recorded_at,
            )
            if verified.manifest.number != slot.number:
                raise StoredDataUnreadable("the manifest is of another number")
            if not hmac.compare_digest(verified.payload_sha256, released.manifest_sha256):
                raise StoredDataUnreadable("the manifest is not the released one")
            if verified.signer_key_id != released.signer_key_id:
                raise StoredDataUnreadable("the manifest was signed by another key than the released one")
            self._training.require_sound(slot.tenant, verified.manifest.dataset_roots)
            files = _read_files(stored, verified.manifest)
        return VerifiedModel(
            slot, verified.manifest, verified.payload_sha256, verified.signer_key_id, files, seal=_SEAL
        )


def _refused(slot: Slot, error: CasemateError) -> FailedPrecondition:
    _LOGGER.error("refused to load %s: %s", slot, error)
    return FailedPrecondition(f"{slot}: {error}", reason=Reason.MODEL_REFUSED, violations=error.violations)


def _read_files(stored: OpenedVersion, manifest: ModelManifest) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for digest in manifest.files:
        data = stored.file(digest.name, plaintext_bytes=digest.bytes)
        if len(data) != digest.bytes or not hmac.compare_digest(hashlib.sha256(data).digest(), digest.sha256):
            raise StoredDataUnreadable("a file is not the signed one")
        files[digest.name] = data
    if not says_what_runs(files):
        raise StoredDataUnreadable("the manifest does not list one model")
    return files
