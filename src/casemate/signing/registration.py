"""Proof that whoever registers a public key holds its private half.

If this fails: a tenant registers somebody else's key as its own and claims what
that key signed; manifests still name their tenant, so nothing crosses over.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import SignatureInvalid
from casemate.signing import dsse, fields, strict_json
from casemate.signing.signers import ROLES, Role
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from casemate.signing.keys import PublicKey, SigningKey

REGISTRATION_TYPE: Final = "application/vnd.casemate.signer-registration.v1+json"

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRegistration:
    """A key whose holder asked to sign for this tenant in this role; only `verify_registration` makes one."""

    tenant: str
    role: Role
    public_key: PublicKey
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedRegistration is made by verify_registration")


def registration_statement(tenant: str, role: Role, public_key: PublicKey, audience: str) -> bytes:
    """The one statement that proves possession of `public_key` for this tenant, role and service.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`; a name is not of the allowed form.
    """
    fields.text(tenant, "tenant", fields.NAME)
    fields.text(audience, "audience", fields.AUDIENCE)
    if role not in ROLES:
        raise invalid("role", "is not supplier, publisher or operator")
    return strict_json.canonical(
        {"audience": audience, "key_id": public_key.key_id, "role": role, "tenant": tenant, "type": REGISTRATION_TYPE}
    )


def sign_registration(tenant: str, role: Role, key: SigningKey, audience: str) -> bytes:
    """The proof that `verify_registration` takes."""
    return dsse.sign_envelope(REGISTRATION_TYPE, registration_statement(tenant, role, key.public, audience), key)


def verify_registration(
    proof_envelope: bytes, *, tenant: str, role: Role, public_key: PublicKey, audience: str
) -> VerifiedRegistration:
    """The registration, if the key itself signed exactly this statement.

    There is no nonce: a proof that is sent again asks for the same thing again,
    and the registry holds a key once.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`; not an envelope of this type.
        SignatureInvalid: signed by another key, or about another tenant, role, key or service.
    """
    expected = registration_statement(tenant, role, public_key, audience)
    verified = dsse.verify_envelope(proof_envelope, payload_type=REGISTRATION_TYPE, resolve=lambda _hint: public_key)
    if verified.payload != expected:
        raise SignatureInvalid("the proof of possession is about something else")
    return VerifiedRegistration(tenant=tenant, role=role, public_key=public_key, _seal=_SEAL)
