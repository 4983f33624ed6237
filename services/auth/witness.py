"""The auth service as a witness of the transparency log (c2sp.org/tlog-witness, over our own rpc).

It cosigns a checkpoint when that extends the last one that it cosigned, and
nothing else: so datasets, or whoever holds its database and its keys, cannot show
two histories that both carry the cosignature.

The row alone would let a superuser of this database put an old one back, or take
it away. Each process also remembers the largest tree that it cosigned, and refuses
and alarms when the row knows less.

If this fails: a fork of the log is found only when two readers compare what they
kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import Conflict, DigestMismatch, FieldViolation, InvalidRequest, Reason, StoredDataUnreadable
from casemate.signing.checkpoint import (
    ED25519_COSIGNATURE,
    VerifiedCheckpoint,
    parse_verification_key,
    verification_key,
    verify_checkpoint,
)
from casemate.signing.cosignature import cosign
from casemate.signing.keys import SigningKey
from casemate.signing.merkle import verify_consistency
from services.auth.store.witness import Witnessed, WitnessStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from services.auth.store.table import Alarms

_SEED: Final = "log-witness-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """A cosignature and the size that is known from now on; the cosignature is empty if another proof is needed."""

    cosignature: str
    known_size: int


def witness_key(key: AuthorityKey) -> SigningKey:
    """The witness's Ed25519 key: derived from the authority key, so that all replicas have it and none stores it."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(key.mac(_SEED, "1", {})))


class Witness:
    """Cosigns checkpoints of the one log of this trust domain.

    Args:
        store: what was cosigned last.
        key: the witness's own.
        name: the name that it cosigns under.
        origin: the log's name.
        alarms: told of a history that was rewritten.
        clock: for the cosignature.
    """

    def __init__(
        self, *, store: WitnessStore, key: SigningKey, name: str, origin: str, alarms: Alarms, clock: Clock
    ) -> None:
        self._store = store
        self._key = key
        self._name = name
        self._origin = origin
        self._alarms = alarms
        self._clock = clock
        self._seen = 0

    @property
    def verification_key(self) -> str:
        """The witness's key, as C2SP tools write it."""
        return verification_key(self._name, self._key.public, ED25519_COSIGNATURE)

    async def cosign(self, note: str, *, old_size: int, proof: Sequence[bytes], log_key: str) -> Cosigned:
        """Cosigns a checkpoint, if it extends the last one by the proof.

        Raises:
            InvalidRequest, SignatureInvalid: not a checkpoint of the log by the log's first key.
            Conflict: EQUIVOCATION, it does not extend the last one.
            StoredDataUnreadable: what is known of the last one was changed, or put back.
        """
        name, public_key = parse_verification_key(log_key)
        if name != self._origin:
            raise InvalidRequest("another log", violations=(FieldViolation("log_key", "is of another log"),))
        checkpoint = verify_checkpoint(note, self._origin, public_key)

        def judge(known: Witnessed | None) -> Witnessed | None:
            return self._judge(known, checkpoint, old_size=old_size, proof=proof, log_key=log_key.strip())

        known = await self._store.replace(self._origin, judge)
        if known is None or (known.size, known.root) != (checkpoint.size, checkpoint.root):
            return Cosigned(cosignature="", known_size=0 if known is None else known.size)
        self._seen = max(self._seen, known.size)
        line = cosign(checkpoint, name=self._name, key=self._key, at=known.cosigned_at)
        return Cosigned(cosignature=line, known_size=known.size)

    def _judge(
        self,
        known: Witnessed | None,
        checkpoint: VerifiedCheckpoint,
        *,
        old_size: int,
        proof: Sequence[bytes],
        log_key: str,
    ) -> Witnessed | None:
        size = 0 if known is None else known.size
        if size < self._seen:
            self._alarms.sound("a witnessed checkpoint was put back", table="log_witness", key=self._origin)
            raise StoredDataUnreadable(f"{self._seen} entries were cosigned, and the row says {size}")
        if known is not None and known.log_key != log_key:
            raise InvalidRequest(
                "another key of the log",
                reason=Reason.SIGNATURE_INVALID,
                violations=(FieldViolation("log_key", "is not the key that the log was first seen with"),),
            )
        if not checkpoint.size:
            raise InvalidRequest("an empty log", violations=(FieldViolation("checkpoint", "is of an empty log"),))
        if old_size != size:
            return None
        if known is not None:
            self._require_extension(known, checkpoint, proof)
        return Witnessed(
            origin=self._origin,
            log_key=log_key,
            size=checkpoint.size,
            root=checkpoint.root,
            cosigned_at=self._clock.now().replace(microsecond=0),
        )

    def _require_extension(self, known: Witnessed, checkpoint: VerifiedCheckpoint, proof: Sequence[bytes]) -> None:
        try:
            verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, proof)
        except DigestMismatch as error:
            self._alarms.sound("the log shows another history", table="log_witness", key=self._origin)
            raise Conflict(
                f"{checkpoint.size} entries do not extend the {known.size} that were cosigned",
                reason=Reason.EQUIVOCATION,
            ) from error
