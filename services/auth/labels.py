"""Labels of released versions: an operator signs where each one points.

A label is the one way back to an older version, so it takes an administrator's
token and an operator's key: neither alone moves it.
"""

from __future__ import annotations

from casemate.clock import Clock
from casemate.errors import NotFound
from casemate.gate.core.records import Release
from casemate.signing.release_label import verify_release_label
from casemate.signing.signers import untrusted
from services.auth.records import HOUSE_TENANT, LabelRow
from services.auth.store.authority import AuthorityStore
from services.auth.validation import FieldChecks


class Labels:
    """Records signed labels.

    Args:
        store: where they go.
        audience: the name that labels must be signed for.
        clock: says when now is.
    """

    def __init__(self, *, store: AuthorityStore, audience: str, clock: Clock) -> None:
        self._store = store
        self._audience = audience
        self._clock = clock

    async def set(self, admin: str, *, envelope: bytes, signer_key_id: str) -> Release:
        """Points a label where an operator signed that it points; returns the release as it now stands.

        The same envelope again changes nothing.

        Args:
            admin: tenant of the administrator who asks.
            envelope: the signed label, DSSE in JSON.
            signer_key_id: the operator's key.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`; SignatureInvalid; PermissionDenied: `SIGNER_UNTRUSTED`.
            NotFound: the tenant is out of reach, or has no such version.
            Conflict: the revision is not greater than the last one.
        """
        checks = FieldChecks()
        checks.identifier("signer_key_id", signer_key_id)
        checks.raise_if_any()
        now = self._clock.now()
        signer = await self._store.signer(signer_key_id)
        if signer is None:
            raise untrusted(f"signer {signer_key_id} is not registered")
        verified = verify_release_label(envelope, audience=self._audience, signer=signer, house=HOUSE_TENANT, now=now)
        label = verified.label
        if admin not in (label.tenant, HOUSE_TENANT):
            raise NotFound("tenant outside of reach")
        row = LabelRow(
            tenant=label.tenant,
            model=label.model,
            label=label.label,
            number=label.number,
            revision=label.revision,
            signer_key_id=verified.signer_key_id,
            envelope=verified.envelope,
            recorded_at=now,
        )
        return await self._store.set_label(row, manifest_sha256=label.manifest_sha256)
