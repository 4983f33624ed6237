"""What somebody kept of the log, and what is judged by it without any service.

A folder: `checkpoint` (the last one that verified), `keys` (the log's, and the
witness's once it was heard), `leaves` (the hash of every entry under that
checkpoint). With the leaves, every other checkpoint up to that size is judged
offline, and so is every receipt.

If this fails: a rewritten or forked log goes unseen by whoever keeps this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, Code, ConfigurationError, StoredDataUnreadable
from casemate.signing.checkpoint import (
    ED25519_COSIGNATURE,
    parse_verification_key,
    verification_key,
    verify_checkpoint,
)
from casemate.signing.cosignature import VerifiedCosignature, verify_cosignature
from casemate.signing.log_proof import HEADER, VerifiedEntry, verify_log_proof
from casemate.signing.merkle import HASH_BYTES, leaf_hash, root, verify_consistency

if TYPE_CHECKING:
    from casemate.signing.checkpoint import VerifiedCheckpoint
    from casemate.signing.keys import PublicKey

_CHECKPOINT: Final = "checkpoint"
_KEYS: Final = "keys"
_LEAVES: Final = "leaves"


class HistoryDiffers(StoredDataUnreadable):
    """Two signed checkpoints cannot both be true: the log was rewritten, or shows different faces.

    Attributes:
        evidence: the notes; two together prove it to anybody who has the log's key. One alone where the service
            itself has no checkpoint any more that its witness takes.
    """

    def __init__(self, detail: str, *, evidence: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """What a service shows of an entry; none of it is believed yet. `entry` is None where it is another tenant's."""

    leaf_hash: bytes
    entry: bytes | None


@dataclass(frozen=True, slots=True)
class LogKeys:
    """Whose signatures count.

    Attributes:
        origin: the log's name.
        log: the log's key.
        witnesses: name and key of those whose cosignatures must all be there.
    """

    origin: str
    log: PublicKey
    witnesses: tuple[tuple[str, PublicKey], ...] = ()

    @classmethod
    def parse(cls, log_key: str, witness_keys: Iterable[str] = ()) -> LogKeys:
        """Reads keys as C2SP tools write them.

        Raises:
            InvalidRequest: one of them is none.
        """
        origin, key = parse_verification_key(log_key)
        witnesses = tuple(parse_verification_key(text, ED25519_COSIGNATURE) for text in witness_keys if text.strip())
        return cls(origin, key, witnesses)

    def verify(self, note: str) -> VerifiedCheckpoint:
        """The checkpoint, if the log signed it and every witness cosigned it.

        Raises:
            SignatureInvalid: a signature is missing or does not verify.
            InvalidRequest: it is not a checkpoint of this log.
        """
        checkpoint = self.signed(note)
        self.require_witnesses(checkpoint)
        return checkpoint

    def signed(self, note: str) -> VerifiedCheckpoint:
        """The checkpoint, if the log signed it, whoever cosigned: enough to be held to it.

        Raises:
            SignatureInvalid: its signature is missing or does not verify.
            InvalidRequest: it is not a checkpoint of this log.
        """
        return verify_checkpoint(note, self.origin, self.log)

    def require_witnesses(self, checkpoint: VerifiedCheckpoint) -> None:
        """Returns if every witness cosigned. There is nothing to witness about an empty log.

        Raises:
            SignatureInvalid: one did not.
        """
        if checkpoint.size:
            self.cosignatures(checkpoint)

    def said_of(self, checkpoint: VerifiedCheckpoint) -> str:
        """Whether all witnesses stand behind a checkpoint, in a word; nothing where there are none."""
        if not self.witnesses:
            return ""
        try:
            self.cosignatures(checkpoint)
        except CasemateError:
            return " (not cosigned)"
        return " (cosigned)"

    def cosignatures(self, checkpoint: VerifiedCheckpoint) -> list[VerifiedCosignature]:
        """What each witness says.

        Raises:
            SignatureInvalid: one says nothing.
        """
        return [verify_cosignature(checkpoint, name=name, public_key=key) for name, key in self.witnesses]

    def to_lines(self) -> str:
        """The keys, one a line, the log's first."""
        lines = [verification_key(self.origin, self.log)]
        lines += [verification_key(name, key, ED25519_COSIGNATURE) for name, key in self.witnesses]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLog:
    """A checkpoint that was verified, with all leaves under it."""

    keys: LogKeys
    checkpoint: VerifiedCheckpoint | None = None
    leaves: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def load(cls, directory: Path) -> SavedLog | None:
        """Reads the folder, verified again; nothing if it was never written.

        Raises:
            StoredDataUnreadable: the leaves are not those of the checkpoint.
            SignatureInvalid, InvalidRequest: the checkpoint is not one of the keys'.
        """
        if not (directory / _CHECKPOINT).exists():
            return None
        lines = (directory / _KEYS).read_text().splitlines()
        keys = LogKeys.parse(lines[0] if lines else "", lines[1:])
        checkpoint = verify_checkpoint((directory / _CHECKPOINT).read_text(), keys.origin, keys.log)
        data = (directory / _LEAVES).read_bytes()[: checkpoint.size * HASH_BYTES]
        leaves = tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
        if len(leaves) != checkpoint.size or root(leaves) != checkpoint.root:
            raise StoredDataUnreadable(f"the leaves in {directory} are not those of its checkpoint")
        return cls(keys=keys, checkpoint=checkpoint, leaves=leaves)

    def save(self, directory: Path) -> None:
        """Writes the folder; the checkpoint last, by rename, so that a crash leaves the one before."""
        if self.checkpoint is None:
            raise ConfigurationError("there is no checkpoint to save")
        directory.mkdir(parents=True, exist_ok=True)
        # More leaves than the old checkpoint needs do it no harm: see `load`.
        for name, data in (
            (_KEYS, self.keys.to_lines().encode()),
            (_LEAVES, b"".join(self.leaves)),
            (_CHECKPOINT, self.checkpoint.text.encode()),
        ):
            part = directory / f"{name}.part"
            part.write_bytes(data)
            part.replace(directory / name)

    @property
    def size(self) -> int:
        """How many entries are known."""
        return len(self.leaves)

    def advanced(
        self,
        note: str,
        *,
        prove: Callable[[int, int], Sequence[bytes]],
        fetch: Callable[[int, int], Iterable[ShownEntry]],
    ) -> tuple[SavedLog, list[bytes | None]]:
        """What is known after a newer checkpoint, and the new entries; None where one is another tenant's.

        Args:
            note: the checkpoint, from wherever.
            prove: offers a consistency proof between two sizes.
            fetch: offers the entries from one index to before another.

        What the log itself signed is held against what is kept before anybody asks for its witness: a face that is
        shown to one watcher alone has no cosignature, and is the proof.

        Raises:
            HistoryDiffers: the checkpoint does not extend what is kept.
            SignatureInvalid, InvalidRequest: it is not one of the keys'.
            StoredDataUnreadable: the entries offered are not those under it.
        """
        checkpoint = self.keys.signed(note)
        if self.checkpoint is not None and checkpoint.size <= self.size:
            self.require_same_history(checkpoint)
            if checkpoint.size < self.size:
                raise self._differs(f"the log went back from {self.size} to {checkpoint.size} entries", checkpoint)
            self.keys.require_witnesses(checkpoint)
            return SavedLog(keys=self.keys, checkpoint=checkpoint, leaves=self.leaves), []
        if self.checkpoint is not None and self.size:
            self._require_extension(self.checkpoint, checkpoint, prove)
        self.keys.require_witnesses(checkpoint)
        shown = list(fetch(self.size, checkpoint.size))
        leaves = (
            *self.leaves,
            *(each.leaf_hash if each.entry is None else leaf_hash(each.entry) for each in shown),
        )
        if len(leaves) != checkpoint.size or root(leaves) != checkpoint.root:
            raise StoredDataUnreadable("the entries that the log shows are not those that it signed")
        return SavedLog(keys=self.keys, checkpoint=checkpoint, leaves=leaves), [each.entry for each in shown]

    def require_same_history(self, checkpoint: VerifiedCheckpoint) -> None:
        """Returns if a checkpoint no larger than what is kept is one of the same history. Offline.

        Raises:
            HistoryDiffers: it is not.
            ConfigurationError: it is larger, so that more than the folder is needed.
        """
        if self.checkpoint is None or checkpoint.size > self.size:
            raise ConfigurationError(
                f"the checkpoint is of {checkpoint.size} entries and {self.size} are kept: watch the log first"
            )
        if root(self.leaves[: checkpoint.size]) != checkpoint.root:
            raise self._differs(
                f"the log signed another tree of {checkpoint.size} entries than the one kept", checkpoint
            )

    def _require_extension(
        self,
        kept: VerifiedCheckpoint,
        checkpoint: VerifiedCheckpoint,
        prove: Callable[[int, int], Sequence[bytes]],
    ) -> None:
        try:
            proof = prove(kept.size, checkpoint.size)
            verify_consistency(kept.size, checkpoint.size, kept.root, checkpoint.root, proof)
        except CasemateError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise  # says nothing about the log
            text = f"{checkpoint.size} entries do not begin with the {kept.size} that are kept"
            raise self._differs(text, checkpoint) from error

    def _differs(self, text: str, shown: VerifiedCheckpoint) -> HistoryDiffers:
        return differing(self.keys, text, ("kept", self.checkpoint), ("shown", shown))


def differing(keys: LogKeys, text: str, *faces: tuple[str, VerifiedCheckpoint | None]) -> HistoryDiffers:
    """What says that these cannot all be true: each by its size, its root, and whether it is cosigned."""
    shown = [
        f"{name}: {checkpoint.size} entries, root {checkpoint.root.hex()[:16]}…{keys.said_of(checkpoint)}"
        for name, checkpoint in faces
        if checkpoint is not None
    ]
    evidence = tuple(checkpoint.text for _, checkpoint in faces if checkpoint is not None)
    return HistoryDiffers("; ".join((text, *shown)), evidence=evidence)


def verify_file(
    text: str, keys: LogKeys, *, judge: Callable[[VerifiedCheckpoint], None] | None = None
) -> VerifiedCheckpoint | VerifiedEntry:
    """A receipt or a checkpoint, verified by keys.

    Args:
        text: the file.
        keys: whose signatures count.
        judge: raises if a checkpoint that the log signed belongs to another history; asked before the witnesses are.

    Raises:
        SignatureInvalid, InvalidRequest, DigestMismatch: it is neither, or not of this log.
        HistoryDiffers: by `judge`.
    """
    found: VerifiedCheckpoint | VerifiedEntry
    if text.startswith(HEADER):
        found = verify_log_proof(text, origin=keys.origin, public_key=keys.log)
        checkpoint = found.checkpoint
    else:
        found = checkpoint = keys.signed(text)
    if judge is not None:
        judge(checkpoint)
    keys.require_witnesses(checkpoint)
    return found
