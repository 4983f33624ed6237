"""Receipts of the log that verify offline: c2sp.org/tlog-proof.

The entry travels in the proof's `extra` line, so that a receipt is one file. The
line is not trusted: the entry is what hashes to the proven leaf.

If this fails: somebody believes that an entry is in the log which is not.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest
from casemate.signing.checkpoint import MAXIMUM_NOTE_CHARACTERS, MAXIMUM_SIZE, VerifiedCheckpoint, verify_checkpoint
from casemate.signing.merkle import HASH_BYTES, leaf_hash, verify_inclusion

if TYPE_CHECKING:
    from casemate.signing.keys import PublicKey

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAXIMUM_HASHES: Final = 63
MAXIMUM_ENTRY_BYTES: Final = 65_535
_MAXIMUM_CHARACTERS: Final = MAXIMUM_NOTE_CHARACTERS + 4 * MAXIMUM_ENTRY_BYTES // 3 + MAXIMUM_HASHES * 45 + 100

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """A proof as it is written; nothing in it is verified.

    Attributes:
        index: of the entry, counted from 0.
        hashes: the inclusion proof, from the leaf up.
        checkpoint: the note that it leads to.
        extra: the entry, if it travels with the proof.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def to_text(self) -> str:
        """The proof as a file: the extension is `.tlog-proof`."""
        extra = [] if self.extra is None else [f"extra {_encode(self.extra)}"]
        lines = [HEADER, *extra, f"index {self.index}", *map(_encode, self.hashes)]
        return "\n".join(lines) + "\n\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str) -> LogProof:
        """Reads a file.

        Raises:
            InvalidRequest: it is not a proof.
        """
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if len(text) > _MAXIMUM_CHARACTERS or not separator or lines.pop(0) != HEADER or not lines:
            raise _malformed("not a proof")
        extra = None
        if lines[0].startswith("extra "):
            extra = _decode(lines.pop(0).removeprefix("extra "))
        index = lines.pop(0) if lines else ""
        number = index.removeprefix("index ")
        if not index.startswith("index ") or not _DECIMAL.fullmatch(number) or int(number) > MAXIMUM_SIZE:
            raise _malformed("no index")
        hashes = tuple(_decode(line) for line in lines)
        if len(hashes) > MAXIMUM_HASHES or any(len(digest) != HASH_BYTES for digest in hashes):
            raise _malformed("not hashes of a path")
        return cls(index=int(number), hashes=hashes, checkpoint=checkpoint, extra=extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEntry:
    """An entry that is in the tree of a checkpoint; only `verify_log_proof` makes one."""

    index: int
    entry: bytes
    checkpoint: VerifiedCheckpoint
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedEntry is made by verify_log_proof")


def verify_log_proof(text: str, *, origin: str, public_key: PublicKey, entry: bytes | None = None) -> VerifiedEntry:
    """The entry, if the log `origin` signed a tree with it at the proof's index.

    Args:
        text: the proof.
        origin: the log's name.
        public_key: the log's key.
        entry: the entry; the one in the proof if not given.

    Raises:
        InvalidRequest: it is not a proof, not of this log, or holds no entry.
        SignatureInvalid: the checkpoint is not signed by this key.
        DigestMismatch: the entry is not in that tree at that place.
    """
    proof = LogProof.parse(text)
    data = proof.extra if entry is None else entry
    if data is None:
        raise _malformed("the proof holds no entry, and none was given")
    checkpoint = verify_checkpoint(proof.checkpoint, origin, public_key)
    verify_inclusion(leaf_hash(data), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return VerifiedEntry(index=proof.index, entry=data, checkpoint=checkpoint, _seal=_SEAL)


def write_log_proof(index: int, entry: bytes, hashes: Sequence[bytes], checkpoint: str) -> str:
    """The receipt of an entry, which it holds."""
    return LogProof(index=index, hashes=tuple(hashes), checkpoint=checkpoint, extra=entry).to_text()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("not base64") from error
    if _encode(data) != text:
        raise _malformed("base64 in another spelling")
    return data


def _malformed(detail: str) -> InvalidRequest:
    return InvalidRequest(f"log proof: {detail}", violations=(FieldViolation("proof", "is not a tlog-proof"),))
