"""DSSE envelopes: signatures over a type and a payload (github.com/secure-systems-lab/dsse).

If this fails: bytes that nobody signed are read as a manifest; chunk digests
then still tie the data to that manifest, and the log records it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from casemate.errors import SignatureInvalid
from casemate.signing import strict_json
from casemate.signing.signers import untrusted
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from casemate.signing.keys import PublicKey, SigningKey

MAXIMUM_ENVELOPE_BYTES: Final = 4_000_000  # fits, with its frame, into one message of 4 MiB
MAXIMUM_SIGNATURES: Final = 8
MAXIMUM_ENVELOPE_ITEMS: Final = 256  # base64 has none of JSON's separators
MAXIMUM_KEY_ID_CHARACTERS: Final = 128

KeyResolver: TypeAlias = "Callable[[str], PublicKey | None]"
"""Gives the key that a key id hints at, or nothing."""

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPayload:
    """Bytes that `key_id` signed as the asked-for type; only `verify_envelope` makes one."""

    payload: bytes
    key_id: str
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedPayload is made by verify_envelope")


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, key: SigningKey) -> bytes:
    """The JSON envelope of `payload`, with one signature.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`; no verifier would take an envelope of this size.
    """
    signature = key.sign(pae(payload_type, payload))
    envelope = strict_json.canonical(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.public.key_id, "sig": base64.b64encode(signature).decode()}],
        }
    )
    if len(envelope) > MAXIMUM_ENVELOPE_BYTES:
        raise invalid("envelope", "is too large")
    return envelope


def verify_envelope(envelope: bytes, *, payload_type: str, resolve: KeyResolver) -> VerifiedPayload:
    """The payload, if a key that `resolve` knows has signed it as `payload_type`.

    A key id in an envelope is a hint and nothing more: the id in the result is
    that of the key which verified. At most eight signatures are tried; one that
    verifies is enough.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`; this is not an envelope of this type.
        SignatureInvalid: there is no signature, or that of a known key does not verify.
        PermissionDenied: `SIGNER_UNTRUSTED`; `resolve` knows none of the keys.
    """
    payload, signatures = _parse(envelope, payload_type)
    if not signatures:
        raise SignatureInvalid("the envelope has no signature")
    message = pae(payload_type, payload)
    failure: SignatureInvalid | None = None
    for hint, signature in signatures:
        key = resolve(hint)
        if key is None:
            continue
        try:
            key.verify(signature, message)
        except SignatureInvalid as error:
            failure = error
            continue
        return VerifiedPayload(payload=payload, key_id=key.key_id, _seal=_SEAL)
    if failure is not None:
        raise failure
    raise untrusted("no key of the envelope is known")


def peek_payload(envelope: bytes, payload_type: str) -> bytes:
    """What the envelope claims to have signed, for whoever forwards it and believes none of it.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`; this is not an envelope of this type.
    """
    return _parse(envelope, payload_type)[0]


def _parse(envelope: bytes, payload_type: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Payload, and (hint, signature) pairs. Unknown fields are ignored, as DSSE asks."""
    if len(envelope) > MAXIMUM_ENVELOPE_BYTES:
        raise invalid("envelope", "is too large")
    members = strict_json.parse_object(envelope, field="envelope", maximum_items=MAXIMUM_ENVELOPE_ITEMS)
    if members.get("payloadType") != payload_type:
        raise invalid("envelope.payloadType", "is not the type that is wanted")
    payload = _base64(members.get("payload"), "envelope.payload")
    entries = members.get("signatures")
    if not isinstance(entries, list) or len(entries) > MAXIMUM_SIGNATURES:
        raise invalid("envelope.signatures", "is not a list of at most eight signatures")
    return payload, [_signature(entry) for entry in entries]


def _signature(entry: object) -> tuple[str, bytes]:
    if not isinstance(entry, dict):
        raise invalid("envelope.signatures", "holds something else than a signature")
    hint = entry.get("keyid", "")
    if not isinstance(hint, str) or len(hint) > MAXIMUM_KEY_ID_CHARACTERS:
        raise invalid("envelope.signatures.keyid", "is not a key id")
    return hint, _base64(entry.get("sig"), "envelope.signatures.sig")


def _base64(text: object, field: str) -> bytes:
    """Standard or URL-safe base64 with padding; DSSE's verifiers take both."""
    if not isinstance(text, str):
        raise invalid(field, "is not base64")
    standard = text.translate(_TO_STANDARD) if "-" in text or "_" in text else text
    try:
        data = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(field, "is not base64") from error
    if base64.b64encode(data).decode() != standard:
        raise invalid(field, "is not base64 in its one spelling")  # stray bits in the last character
    return data


_TO_STANDARD: Final = str.maketrans("-_", "+/")
