"""Which versions of a model may be served: only what a trusted publisher signed, one number after the other."""

from __future__ import annotations

import hashlib

from casemate.clock import Clock
from casemate.gate.core.records import Release, ReleasedVersion
from casemate.signing.signers import untrusted
from services.auth.store.authority import AuthorityStore
from services.auth.validation import FieldChecks

_MAX_NUMBER = 2**63 - 1


class Releases:
    """Records versions for the inference service, which has verified their manifests."""

    def __init__(self, *, store: AuthorityStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def record(
        self, *, tenant: str, model: str, number: int, manifest_sha256: bytes, signer_key_id: str
    ) -> Release:
        """Appends a version and returns the release as it now stands; the same version again changes nothing.

        The signer is judged here once more, because the service that verified the
        manifest may not have heard yet that it is revoked.

        Raises:
            InvalidRequest: names the fields.
            NotFound: the tenant.
            PermissionDenied: `SIGNER_UNTRUSTED`.
            Conflict: another version has that number, or it is not the next one.
        """
        checks = FieldChecks()
        checks.tenant("tenant", tenant)
        checks.segment("model", model)
        checks.that("version.number", "must be 1 or more", holds=0 < number <= _MAX_NUMBER)
        digest_length = hashlib.sha256().digest_size
        checks.that("version.manifest_sha256", "must be 32 bytes", holds=len(manifest_sha256) == digest_length)
        checks.identifier("version.signer_key_id", signer_key_id)
        checks.raise_if_any()
        now = self._clock.now()
        signer = await self._store.signer(signer_key_id)
        if signer is None or signer.tenant != tenant or signer.role != "publisher":
            raise untrusted(f"signer {signer_key_id} does not publish for {tenant}")
        signer.judge(now)
        version = ReleasedVersion(
            number=number, manifest_sha256=manifest_sha256, signer_key_id=signer_key_id, recorded_at=now
        )
        return await self._store.record_release(tenant, model, version)
