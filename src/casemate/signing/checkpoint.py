"""Log checkpoints: C2SP signed notes (c2sp.org/signed-note, c2sp.org/tlog-checkpoint) with Ed25519.

If this fails: a log can show two histories under one size; whoever kept an
older checkpoint still finds it by a consistency proof.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest, Reason, SignatureInvalid
from casemate.signing.keys import PublicKey
from casemate.signing.merkle import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.signing.keys import SigningKey

MAXIMUM_NOTE_CHARACTERS: Final = 65_536
MAXIMUM_SIGNATURES: Final = 100
MAXIMUM_SIZE: Final = 2**63 - 1

ED25519_NOTE: Final = b"\x01"
"""The type of a key that signs notes."""

ED25519_COSIGNATURE: Final = b"\x04"
"""The type of a witness's key: c2sp.org/tlog-cosignature."""

_ORIGIN: Final = re.compile(r"[!-*,-~]{1,255}")  # visible ASCII without "+", which vkeys split at
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_ED25519_SPKI: Final = bytes.fromhex("302a300506032b6570032100")  # RFC 8410 section 4, before the 32 bytes
_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """Size and root that the log signed; only `verify_checkpoint` makes one.

    Attributes:
        extensions: the lines after the root, which are signed too.
        text: the whole note, for keeping.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...]
    text: str
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedCheckpoint is made by verify_checkpoint")


def sign_checkpoint(origin: str, size: int, root: bytes, key: SigningKey) -> str:
    """The checkpoint as a note signed under the name `origin`.

    Raises:
        InvalidRequest: the key is not Ed25519, or a part cannot be written.
    """
    if not _ORIGIN.fullmatch(origin) or not 0 <= size <= MAXIMUM_SIZE or len(root) != HASH_BYTES:
        raise _malformed("origin, size or root cannot be written")
    body = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    return sign_note(body, origin, key)


def verify_checkpoint(text: str, origin: str, public_key: PublicKey) -> VerifiedCheckpoint:
    """The checkpoint, if the log `origin` signed it with this key.

    Raises:
        InvalidRequest: it is not a checkpoint, or not of this log.
        SignatureInvalid: there is no valid signature of the key.
    """
    lines = verify_note(text, origin, public_key).split("\n")[:-1]
    if len(lines) < 3 or lines[0] != origin:
        raise _malformed("not a checkpoint of this log")
    if not _DECIMAL.fullmatch(lines[1]) or int(lines[1]) > MAXIMUM_SIZE:
        raise _malformed("the size is not a number")
    root = _base64(lines[2])
    if len(root) != HASH_BYTES:
        raise _malformed("the root does not have 32 bytes")
    if "" in lines[3:]:
        raise _malformed("an extension line is empty")
    return VerifiedCheckpoint(
        origin=origin, size=int(lines[1]), root=root, extensions=tuple(lines[3:]), text=text, _seal=_SEAL
    )


def sign_note(body: str, name: str, key: SigningKey) -> str:
    """The note: `body`, an empty line, one signature line.

    Raises:
        InvalidRequest: the key is not Ed25519, or name or body cannot be written.
    """
    if not body.endswith("\n") or _has_control_characters(body):
        raise _malformed("the note cannot be written")
    signature = note_key_hash(name, key.public) + key.sign(body.encode())
    return f"{body}\n— {name} {base64.b64encode(signature).decode()}\n"


def verify_note(text: str, name: str, public_key: PublicKey) -> str:
    """The signed body of a note, if `name` signed it with this key. Other signatures are ignored.

    Raises:
        InvalidRequest: it is not a note.
        SignatureInvalid: there is no signature of this key, or it does not verify.
    """
    body, lines = split_note(text)
    found = note_signatures(lines, name, note_key_hash(name, public_key))
    if not found:
        raise SignatureInvalid("the note is not signed by this key")
    for signature in found:
        public_key.verify(signature, body.encode())
    return body


def split_note(text: str) -> tuple[str, list[str]]:
    """Body and signature lines of a note, none of them verified.

    Raises:
        InvalidRequest: it is not a note.
    """
    if len(text) > MAXIMUM_NOTE_CHARACTERS or _has_control_characters(text):
        raise _malformed("not a note")
    body, separator, signatures = text.rpartition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise _malformed("the note has no signatures")
    lines = signatures.split("\n")[:-1]
    if len(lines) > MAXIMUM_SIGNATURES:
        raise _malformed("the note has too many signatures")
    return body + "\n", lines


def note_signatures(lines: Sequence[str], name: str, key_hash: bytes) -> list[bytes]:
    """What this name and key signed among a note's signature lines; every line must be of the allowed form.

    Raises:
        InvalidRequest: one is not.
    """
    return [signature for line in lines for signature in _signature(line, name, key_hash)]


def note_key_hash(name: str, public_key: PublicKey, kind: bytes = ED25519_NOTE) -> bytes:
    """The four bytes by which a note names an Ed25519 key: SHA-256(name ‖ LF ‖ kind ‖ key), cut.

    Raises:
        InvalidRequest: the key is not Ed25519, or no note can hold the name.
    """
    if not _ORIGIN.fullmatch(name):
        raise _malformed("not the name of a key")
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key.ed25519_bytes()).digest()[:4]


def verification_key(name: str, public_key: PublicKey, kind: bytes = ED25519_NOTE) -> str:
    """The key as C2SP tools want it: `name+hash+base64`.

    Raises:
        InvalidRequest: the key is not Ed25519.
    """
    encoded = base64.b64encode(kind + public_key.ed25519_bytes()).decode()
    return f"{name}+{note_key_hash(name, public_key, kind).hex()}+{encoded}"


def parse_verification_key(text: str, kind: bytes = ED25519_NOTE) -> tuple[str, PublicKey]:
    """Name and key of what `verification_key` wrote for the same kind.

    Raises:
        InvalidRequest: it is not one, its hash is another key's, or the key is weak.
    """
    parts = text.strip().split("+", 2)
    material = _base64(parts[2]) if len(parts) == 3 else b""
    if len(material) != 33 or material[:1] != kind:
        raise _malformed("not a verification key of this kind")
    key = PublicKey.admit(_ED25519_SPKI + material[1:])
    if verification_key(parts[0], key, kind) != text.strip():
        raise _malformed("the hash of the verification key is another one's")
    return parts[0], key


def _signature(line: str, name: str, key_hash: bytes) -> list[bytes]:
    """The signature of a line that this name and key made; nothing for a line of others."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "—" or not parts[1]:
        raise _malformed("a signature line is not of the allowed form")
    signature = _base64(parts[2])
    if len(signature) < 5:
        raise _malformed("a signature is too short")
    return [signature[4:]] if parts[1] == name and signature[:4] == key_hash else []


def _has_control_characters(text: str) -> bool:
    """Whether a note could not hold the text: control characters but LF, or no UTF-8."""
    return any((c < " " and c != "\n") or "\ud800" <= c <= "\udfff" for c in text)


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("not base64") from error
    if base64.b64encode(data).decode() != text:
        raise _malformed("base64 in another spelling")
    return data


def _malformed(detail: str) -> InvalidRequest:
    return InvalidRequest(
        f"checkpoint: {detail}",
        reason=Reason.INVALID_FIELD,
        violations=(FieldViolation("checkpoint", "is not a signed checkpoint"),),
    )
