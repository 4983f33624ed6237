"""What an operator signs to have a label name a version, an older one too.

Each label has a revision that only grows, so what was signed once cannot be
sent again after the label was moved.

If this fails: whoever may administer moves a label without the operator's key;
only versions that a publisher signed and the release records can be named.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final, cast

from casemate.signing import dsse, fields
from casemate.signing.signers import untrusted
from casemate.signing.statement import open_statement, write_statement
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.signing.keys import PublicKey, SigningKey
    from casemate.signing.signers import Signer

RELEASE_LABEL_TYPE: Final = "application/vnd.casemate.release-label.v1+json"
RELEASE_LABEL_PREDICATE: Final = "urn:casemate:release-label:v1"

LABEL: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""Begins with a letter, so that no label looks like a number."""

_PREDICATE: Final = frozenset({"audience", "tenant", "model", "label", "number", "revision", "expires_at"})
_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLabel:
    """That a label of a model names one version.

    Attributes:
        audience: the service that it is meant for, as `auth.casemate.internal`.
        label: `stable` is what a request without a version gets.
        number: of the version; zero takes the label away.
        manifest_sha256: of that version's manifest; empty when the label is taken away.
        revision: of this label of this model; greater than the last one's. By custom the
            milliseconds since 1970, so that nobody has to ask for the last one.
        expires_at: until when it may be recorded; cut to whole seconds.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field.
    """

    audience: str
    tenant: str
    model: str
    label: str
    number: int
    manifest_sha256: bytes
    revision: int
    expires_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires_at", fields.moment(self.expires_at, "expires_at"))
        fields.text(self.audience, "audience", fields.AUDIENCE)
        fields.text(self.tenant, "tenant", fields.NAME)
        fields.text(self.model, "model", fields.NAME)
        fields.text(self.label, "label", LABEL)
        fields.integer(self.number, "number", minimum=0)
        fields.integer(self.revision, "revision", minimum=1)
        if self.number:
            fields.digest(self.manifest_sha256, "manifest_sha256")
        elif self.manifest_sha256:
            raise invalid("manifest_sha256", "is not empty though no version is named")

    def to_statement(self) -> bytes:
        """The in-toto Statement v1 that is signed. Equal labels give equal bytes."""
        predicate: dict[str, object] = {
            "audience": self.audience,
            "tenant": self.tenant,
            "model": self.model,
            "label": self.label,
            "number": self.number,
            "revision": self.revision,
            "expires_at": fields.format_moment(self.expires_at),
        }
        return write_statement(RELEASE_LABEL_PREDICATE, self._subject(), predicate)

    def _subject(self) -> list[object]:
        if not self.number:
            return []
        return [{"name": f"{self.model}/{self.number}", "digest": {"sha256": self.manifest_sha256.hex()}}]

    @classmethod
    def parse(cls, payload: bytes) -> ReleaseLabel:
        """The label in a statement. Parsing is not verification.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`; unknown, missing or repeated fields, wrong types.
        """
        subject, predicate = open_statement(payload, RELEASE_LABEL_PREDICATE, _PREDICATE)
        label = cls(
            # The casts are checked by the constructor, which trusts no type.
            audience=cast("str", predicate["audience"]),
            tenant=cast("str", predicate["tenant"]),
            model=cast("str", predicate["model"]),
            label=cast("str", predicate["label"]),
            number=cast("int", predicate["number"]),
            manifest_sha256=_digest_in(subject),
            revision=cast("int", predicate["revision"]),
            expires_at=fields.parse_moment(predicate["expires_at"], "expires_at"),
        )
        if subject != label._subject():
            raise invalid("subject", "is not the version that the label names")
        return label


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReleaseLabel:
    """A label that an operator signed; only `verify_release_label` makes one."""

    label: ReleaseLabel
    envelope: bytes = field(repr=False)
    signer_key_id: str
    payload_sha256: bytes
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedReleaseLabel is made by verify_release_label")


def sign_release_label(label: ReleaseLabel, key: SigningKey) -> bytes:
    """The envelope that `verify_release_label` takes."""
    return dsse.sign_envelope(RELEASE_LABEL_TYPE, label.to_statement(), key)


def verify_release_label(
    envelope: bytes, *, audience: str, signer: Signer, house: str, now: datetime
) -> VerifiedReleaseLabel:
    """The label, if this signer is an operator for its tenant and signed it.

    Args:
        envelope: DSSE in JSON.
        audience: the service that judges.
        signer: the registered signer that is said to have signed.
        house: the tenant whose operators act on every tenant.
        now: when the envelope arrived.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field; also when expired or for another service.
        SignatureInvalid: there is no valid signature of this signer.
        PermissionDenied: `SIGNER_UNTRUSTED`; no operator, another tenant's, out of its window, revoked.
    """

    def resolve(hint: str) -> PublicKey | None:
        return signer.public_key if hint == signer.key_id else None

    verified = dsse.verify_envelope(envelope, payload_type=RELEASE_LABEL_TYPE, resolve=resolve)
    if signer.role != "operator":
        raise untrusted(f"signer {signer.key_id} is no operator")
    signer.judge(now)
    label = ReleaseLabel.parse(verified.payload)
    if signer.tenant not in (label.tenant, house):
        raise untrusted(f"signer {signer.key_id} is no operator of this tenant")
    if label.audience != audience:
        raise invalid("audience", "is not the one that this was sent to")
    if label.expires_at <= now:
        raise invalid("expires_at", "has passed")
    return VerifiedReleaseLabel(
        label=label,
        envelope=envelope,
        signer_key_id=signer.key_id,
        payload_sha256=hashlib.sha256(verified.payload).digest(),
        _seal=_SEAL,
    )


def _digest_in(subject: object) -> bytes:
    """The digest that the subject names, of whatever it is named for: the whole subject is compared afterwards."""
    if subject == []:
        return b""
    (first,) = fields.array(subject, "subject")[:1]
    named = fields.members(first, "subject", frozenset({"name", "digest"}))
    return fields.hex_digest(
        fields.members(named["digest"], "subject.digest", frozenset({"sha256"}))["sha256"], "subject"
    )
