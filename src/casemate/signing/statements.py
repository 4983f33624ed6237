"""Signed manifests: from an envelope to a proof type, in one call each.

If this fails: data or a model that its tenant's signer did not sign is
accepted; the log then holds the envelope that shows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate.signing import dsse
from casemate.signing.dataset_manifest import ChunkDigest, Column, ColumnType, DatasetManifest, Format
from casemate.signing.model_manifest import FileDigest, ModelManifest
from casemate.signing.registration import (
    REGISTRATION_TYPE,
    VerifiedRegistration,
    registration_statement,
    sign_registration,
    verify_registration,
)
from casemate.signing.signers import Role, Signer, untrusted
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.signing.keys import PublicKey, SigningKey

__all__ = [
    "DATASET_MANIFEST_TYPE",
    "MODEL_MANIFEST_TYPE",
    "REGISTRATION_TYPE",
    "ChunkDigest",
    "Column",
    "ColumnType",
    "DatasetManifest",
    "FileDigest",
    "Format",
    "ModelManifest",
    "SignerResolver",
    "VerifiedManifest",
    "VerifiedModelManifest",
    "VerifiedRegistration",
    "registration_statement",
    "sign_dataset_manifest",
    "sign_model_manifest",
    "sign_registration",
    "verify_dataset_manifest",
    "verify_model_manifest",
    "verify_registration",
]

_SECONDS: Final = "%Y-%m-%dT%H:%M:%SZ"
DATASET_MANIFEST_TYPE: Final = "application/vnd.casemate.dataset-manifest.v1+json"
MODEL_MANIFEST_TYPE: Final = "application/vnd.casemate.model-manifest.v1+json"

SignerResolver: TypeAlias = Callable[[str], Signer | None]
"""Gives the registered signer of a key id, or nothing."""

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedManifest:
    """A dataset manifest that a supplier of its tenant signed; only `verify_dataset_manifest` makes one.

    Attributes:
        envelope: the bytes as they came, for storage.
        signer_key_id: the key that verified, whatever the envelope claims.
        payload_sha256: SHA-256 of the signed payload: the manifest's identity.
    """

    manifest: DatasetManifest
    envelope: bytes = field(repr=False)
    signer_key_id: str
    payload_sha256: bytes
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedManifest is made by verify_dataset_manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedModelManifest:
    """A model manifest that a publisher of its tenant signed; only `verify_model_manifest` makes one.

    Attributes:
        envelope: the bytes as they came, for storage.
        signer_key_id: the key that verified, whatever the envelope claims.
        payload_sha256: SHA-256 of the signed payload: the model's digest.
    """

    manifest: ModelManifest
    envelope: bytes = field(repr=False)
    signer_key_id: str
    payload_sha256: bytes
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedModelManifest is made by verify_model_manifest")


def sign_dataset_manifest(manifest: DatasetManifest, key: SigningKey) -> bytes:
    """The envelope that `verify_dataset_manifest` takes."""
    return dsse.sign_envelope(DATASET_MANIFEST_TYPE, manifest.to_statement(), key)


def sign_model_manifest(manifest: ModelManifest, key: SigningKey) -> bytes:
    """The envelope that `verify_model_manifest` takes."""
    return dsse.sign_envelope(MODEL_MANIFEST_TYPE, manifest.to_statement(), key)


def verify_dataset_manifest(
    envelope: bytes, *, audience: str, tenant: str, dataset: str, resolve: SignerResolver, now: datetime
) -> VerifiedManifest:
    """The manifest, if a supplier of `tenant` signed it for this audience and dataset.

    Costs one signature verification and about 6 µs per chunk: a tenth of a second
    for the most chunks that are allowed. Call it off the event loop.

    Args:
        envelope: DSSE in JSON.
        audience: the service that judges.
        tenant: the tenant whose dataset it must be.
        dataset: the dataset that it must be about.
        resolve: finds registered signers.
        now: when the envelope arrived; for one read back, when it was promoted.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field; also when expired or about something else.
        SignatureInvalid: there is no valid signature.
        PermissionDenied: `SIGNER_UNTRUSTED`; unknown, another tenant's, in another role, out of its window, revoked.
    """
    verified = _verify_signature(envelope, DATASET_MANIFEST_TYPE, resolve, tenant=tenant, role="supplier", now=now)
    manifest = DatasetManifest.parse(verified.payload)
    _check_binding(manifest, {"audience": audience, "tenant": tenant, "dataset": dataset}, now)
    return VerifiedManifest(
        manifest=manifest,
        envelope=envelope,
        signer_key_id=verified.key_id,
        payload_sha256=hashlib.sha256(verified.payload).digest(),
        _seal=_SEAL,
    )


def verify_model_manifest(
    envelope: bytes, *, audience: str, tenant: str, model: str, resolve: SignerResolver, now: datetime
) -> VerifiedModelManifest:
    """The manifest, if a publisher of `tenant` signed it for this audience and model.

    Args:
        envelope: DSSE in JSON.
        audience: the service that judges.
        tenant: the tenant whose model it must be.
        model: the model that it must be about.
        resolve: finds registered signers.
        now: when the envelope arrived; for one read back, when it was released.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field; also when expired or about something else.
        SignatureInvalid: there is no valid signature.
        PermissionDenied: `SIGNER_UNTRUSTED`; unknown, another tenant's, in another role, out of its window, revoked.
    """
    verified = _verify_signature(envelope, MODEL_MANIFEST_TYPE, resolve, tenant=tenant, role="publisher", now=now)
    manifest = ModelManifest.parse(verified.payload)
    _check_binding(manifest, {"audience": audience, "tenant": tenant, "model": model}, now)
    return VerifiedModelManifest(
        manifest=manifest,
        envelope=envelope,
        signer_key_id=verified.key_id,
        payload_sha256=hashlib.sha256(verified.payload).digest(),
        _seal=_SEAL,
    )


def _verify_signature(
    envelope: bytes, payload_type: str, resolve: SignerResolver, *, tenant: str, role: Role, now: datetime
) -> dsse.VerifiedPayload:
    """Signature first, then the signer's standing; nothing of the payload is read before both hold."""
    known: dict[str, Signer] = {}

    def resolve_key(hint: str) -> PublicKey | None:
        signer = resolve(hint)
        if signer is None:
            return None
        known[signer.key_id] = signer
        return signer.public_key

    verified = dsse.verify_envelope(envelope, payload_type=payload_type, resolve=resolve_key)
    signer = known[verified.key_id]
    if signer.tenant != tenant or signer.role != role:
        raise untrusted(f"signer {signer.key_id} is not a {role} of this tenant")
    signer.judge(now)
    return verified


def _check_binding(manifest: DatasetManifest | ModelManifest, expected: dict[str, str], now: datetime) -> None:
    for name, value in expected.items():
        if getattr(manifest, name) != value:
            raise invalid(name, "is not the one that this was sent to")
    if manifest.expires_at <= now:
        # Both times: a signer whose clock is days behind sees nothing wrong with theirs.
        raise invalid("expires_at", f"has passed: {manifest.expires_at:{_SECONDS}}, and it is {now:{_SECONDS}}")
