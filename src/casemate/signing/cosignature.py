"""Cosignatures of witnesses on checkpoints: c2sp.org/tlog-cosignature, Ed25519.

A witness says: at this time, this was the largest tree of this log that I have
seen, and it extends every earlier one.

If this fails: a log that shows different histories to different readers is found
only when two of them compare what they kept.
"""

from __future__ import annotations

import base64
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import InvalidRequest, SignatureInvalid
from casemate.signing.checkpoint import ED25519_COSIGNATURE, note_key_hash, note_signatures, split_note

if TYPE_CHECKING:
    from casemate.signing.checkpoint import VerifiedCheckpoint
    from casemate.signing.keys import PublicKey, SigningKey

_TIME_BYTES: Final = 8
_LENGTH: Final = _TIME_BYTES + 64
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAXIMUM_TIME: Final = int((datetime.max.replace(tzinfo=UTC) - _BEGINNING).total_seconds())
_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCosignature:
    """A checkpoint that the witness `name` saw at `at`; only `verify_cosignature` makes one."""

    checkpoint: VerifiedCheckpoint
    name: str
    at: datetime
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedCosignature is made by verify_cosignature")


def cosign(checkpoint: VerifiedCheckpoint, *, name: str, key: SigningKey, at: datetime) -> str:
    """The witness's signature line, with its line feed.

    The caller has checked that the checkpoint extends the last one that it cosigned.

    Raises:
        InvalidRequest: the key is not Ed25519, or the name cannot be written.
    """
    body, _ = split_note(checkpoint.text)
    seconds = int((at - _BEGINNING).total_seconds())
    signature = key.sign(_message(body, seconds))
    line = note_key_hash(name, key.public, ED25519_COSIGNATURE) + seconds.to_bytes(_TIME_BYTES, "big") + signature
    return f"— {name} {base64.b64encode(line).decode()}\n"


def verify_cosignature(checkpoint: VerifiedCheckpoint, *, name: str, public_key: PublicKey) -> VerifiedCosignature:
    """The latest statement of this witness about the checkpoint; all of its lines must verify.

    Raises:
        SignatureInvalid: there is none, or one does not verify.
        InvalidRequest: the key is not Ed25519.
    """
    body, lines = split_note(checkpoint.text)
    found = note_signatures(lines, name, note_key_hash(name, public_key, ED25519_COSIGNATURE))
    if not found:
        raise SignatureInvalid("the checkpoint is not cosigned by this witness")
    times = []
    for signature in found:
        seconds = int.from_bytes(signature[:_TIME_BYTES], "big")
        if len(signature) != _LENGTH or seconds > _MAXIMUM_TIME:
            raise SignatureInvalid("not a cosignature")
        public_key.verify(signature[_TIME_BYTES:], _message(body, seconds))
        times.append(seconds)
    at = _BEGINNING + timedelta(seconds=max(times))
    return VerifiedCosignature(checkpoint=checkpoint, name=name, at=at, _seal=_SEAL)


def with_cosignature(note: str, line: str) -> str:
    """The note with one more signature line.

    Raises:
        InvalidRequest: the result would not be a note, or one with another body.
    """
    joined = note + line
    if split_note(joined)[0] != split_note(note)[0] or not line.endswith("\n") or line.count("\n") != 1:
        raise InvalidRequest("not one signature line")
    return joined


def _message(body: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{body}".encode()
