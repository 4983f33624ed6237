"""The checkpoints that the log shows: signed by its key, cosigned by a witness that can be asked.

A head is cosigned once, when somebody asks for it or the clock says so; a witness
that does not answer holds nothing up. One that answers that the tree does not
extend the last one it saw has found a rewritten history: that alarms.

If this fails: checkpoints carry the log's own signature alone, and say so by
what they lack.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from casemate.errors import CasemateError, Conflict, Reason, StoredDataUnreadable
from casemate.signing.checkpoint import (
    ED25519_COSIGNATURE,
    parse_verification_key,
    sign_checkpoint,
    verification_key,
    verify_checkpoint,
)
from casemate.signing.cosignature import verify_cosignature, with_cosignature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.signing.keys import SigningKey
    from services.datasets.alarms import Alarms
    from services.datasets.log_store import LogStore

WITNESS_EVERY: Final = timedelta(seconds=30)
"""How often the witness is shown the head although nobody asks for it."""

_ATTEMPTS: Final = 3
_QUIET_SECONDS: Final = 5.0
"""A witness that failed is not asked for so long: callers would wait for it, one behind the other."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """What a witness answers: its line, or the size that it wants a proof from."""

    cosignature: str
    known_size: int
    witness_key: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A checkpoint as it is given out: the size of its tree, and the note."""

    size: int
    note: str


class Witness(Protocol):
    """Who cosigns."""

    async def cosign(self, *, checkpoint: str, old_size: int, proof: Sequence[bytes], log_key: str) -> WitnessAnswer:
        """Asks once.

        Raises:
            Conflict: EQUIVOCATION, the checkpoint does not extend the last one cosigned.
            CasemateError: it does not answer, or refuses for another reason.
        """


class Checkpoints:
    """Signs the log's present head.

    Args:
        log: the tree.
        key: the log's own.
        origin: the log's name.
        alarms: told of a witness that found another history.
        witness: none where no witness is configured.
    """

    def __init__(
        self, *, log: LogStore, key: SigningKey, origin: str, alarms: Alarms, witness: Witness | None = None
    ) -> None:
        self._log = log
        self._key = key
        self._origin = origin
        self._alarms = alarms
        self._witness = witness
        self._asking = asyncio.Lock()
        self._known_size = 0
        self._quiet_until = 0.0
        self.witness_key = ""

    @property
    def log_key(self) -> str:
        """The log's key, as C2SP tools write it."""
        return verification_key(self._origin, self._key.public)

    async def present(self) -> Shown:
        """The present checkpoint, cosigned if the witness answers.

        Raises:
            StoredDataUnreadable: the head does not verify, or the witness saw another history.
        """
        async with self._asking:
            shown = await self._signed()
            if self._witness is None or not shown.size or asyncio.get_running_loop().time() < self._quiet_until:
                return shown
            try:
                cosigned = await self._cosigned(self._witness, shown)
            except StoredDataUnreadable:
                self._log.dispute(disputed=True)
                raise
            except CasemateError as error:
                _LOGGER.warning("the witness did not cosign %d entries: %s", shown.size, error)
                self._quiet_until = asyncio.get_running_loop().time() + _QUIET_SECONDS
                return shown
            self._log.dispute(disputed=False)
            return cosigned

    async def watch(self, every: timedelta) -> None:
        """Has the head cosigned again and again, so that the witness sees the log grow. Runs until cancelled."""
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                await self.present()
            except CasemateError as error:
                _LOGGER.warning("no checkpoint: %s", error)

    async def _signed(self) -> Shown:
        head = await self._log.head()
        return Shown(head.size, sign_checkpoint(self._origin, head.size, head.root, self._key))

    async def _cosigned(self, witness: Witness, shown: Shown) -> Shown:
        for _ in range(_ATTEMPTS):
            if self._known_size > shown.size:
                # Another replica may have had more cosigned after our look; then a second look sees it.
                shown = await self._signed()
                self._require_as_large(shown)
            kept_size, kept = await self._log.cosigned()
            if self.witness_key and kept_size == shown.size and kept.startswith(shown.note):
                return Shown(kept_size, kept)
            answer = await self._ask(witness, shown)
            if answer.cosignature:
                return await self._taken(shown, answer)
            self._known_size = answer.known_size
        raise Conflict("other replicas of ours are faster")

    def _require_as_large(self, shown: Shown) -> None:
        with self._alarms.on_authority():
            if self._known_size > shown.size:
                raise StoredDataUnreadable(f"the witness saw {self._known_size} entries, and there are {shown.size}")

    async def _ask(self, witness: Witness, shown: Shown) -> WitnessAnswer:
        known, proof = self._known_size, list[bytes]()
        if known:
            proof, _ = await self._log.consistency(known, shown.size)
        try:
            return await witness.cosign(checkpoint=shown.note, old_size=known, proof=proof, log_key=self.log_key)
        except Conflict as error:
            if error.reason is Reason.EQUIVOCATION:
                with self._alarms.on_authority():
                    raise StoredDataUnreadable("the witness saw another history of the log") from error
            raise

    async def _taken(self, shown: Shown, answer: WitnessAnswer) -> Shown:
        name, key = parse_verification_key(answer.witness_key, ED25519_COSIGNATURE)
        note = with_cosignature(shown.note, answer.cosignature)
        verify_cosignature(verify_checkpoint(note, self._origin, self._key.public), name=name, public_key=key)
        self._known_size, self.witness_key = shown.size, answer.witness_key
        await self._log.keep_cosigned(shown.size, note)
        return Shown(shown.size, note)
