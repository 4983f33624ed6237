"""The one key that signs now, open in memory, and how it is replaced."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.clock import Clock
from casemate.errors import AlreadyExists, CasemateError, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KeyEncryptionKey
from services.auth import token_keys
from services.auth.key_schedule import KeySchedule, Step, Turn, due, next_step
from services.auth.records import TokenKey
from services.auth.store.authority import AuthorityStore
from services.auth.store.token_keys import TokenKeyStore
from services.auth.token_keys import SigningTokenKey

if TYPE_CHECKING:
    from casemate.gate.core.trust import TrustState

LOOKED_AT: Final = timedelta(minutes=1)
"""How often the schedule is looked at; every replica does, one of them acts."""

_log = logging.getLogger(__name__)


class TokenKeyRing:
    """Holds the active key; loads it again whenever trust changes, and turns keys by their schedule.

    Args:
        store: the active key.
        keys: all keys, as their schedule changes them.
        kek: seals and opens private halves.
        clock: says when now is.
        schedule: how long keys live.
    """

    def __init__(
        self,
        *,
        store: AuthorityStore,
        keys: TokenKeyStore,
        kek: KeyEncryptionKey,
        clock: Clock,
        schedule: KeySchedule | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._kek = kek
        self._clock = clock
        self._schedule = schedule or KeySchedule()
        self._active: SigningTokenKey | None = None
        self._trust: TrustState | None = None

    async def prepare(self) -> None:
        """Makes sure that there is an active key, and opens it; several replicas may do so at once.

        Raises:
            StoredDataUnreadable: there is an active key, and its row or its seal does not verify.
        """
        if await self._store.active_token_key() is None:
            try:
                await self._store.add_first_token_key(await self.new_key())
            except AlreadyExists:
                _log.info("another replica made the first token key, or its row does not verify")
        await self.reload()

    async def reload(self) -> None:
        """Opens the key that is active now; no read or unwrap is saved, so call it on changes only.

        Raises:
            StoredDataUnreadable: there is none that verifies. Nothing is signed until there is.
        """
        record = await self._store.active_token_key()
        if record is None:
            self._active = None
            raise StoredDataUnreadable("there is no active token key whose row verifies")
        if self._active is None or self._active.kid != record.kid:
            self._active = await token_keys.open_key(self._kek, record)

    async def run(self, *, every: timedelta = LOOKED_AT) -> None:
        """Turns keys by their schedule until cancelled."""
        while True:
            try:
                await self.turn()
            except CasemateError as error:
                _log.error("token keys cannot be turned; the present one goes on: %s", error)  # a state, not a fault
            await asyncio.sleep(every.total_seconds())

    async def turn(self) -> list[Step]:
        """Does what is due now, and tells what this replica did.

        Raises:
            StoredDataUnreadable: a prepared key does not open; it is not published.
            Unavailable: the database or the key-encryption key cannot be reached.
        """
        done: list[Step] = []
        while True:
            now = self._clock.now()
            keys = await self._keys.all()
            step = next_step(keys, now=now, schedule=self._schedule)
            if step is None:
                return done
            prepared = None
            if step.turn is Turn.PREPARE:
                prepared = replace(await self.new_key(), state="prepared", changed_at=now)
            elif step.turn is Turn.PUBLISH:
                # Opened as it was stored: a key that could not sign must not be waited for.
                await token_keys.open_key(self._kek, next(key for key in keys if key.kid == step.kid))
            if not await self._keys.turn(step, now=now, schedule=self._schedule, prepared=prepared):
                return done  # another replica was faster
            _log.info("token key %s: %s", step.turn.value, step.kid or (prepared.kid if prepared else ""))
            done.append(step)
            if step.turn is Turn.ACTIVATE:
                await self.reload()

    async def overview(self) -> list[tuple[TokenKey, datetime | None]]:
        """Every key whose row verifies, and when its state changes next. One read."""
        keys = await self._keys.all()
        return [(key, due(key, keys, schedule=self._schedule)) for key in keys]

    async def new_key(self) -> TokenKey:
        """A key that may become the active one."""
        return await token_keys.generate(self._kek, now=self._clock.now())

    def active(self) -> SigningTokenKey:
        """The key that signs now.

        Raises:
            Unavailable: there is none.
        """
        if self._active is None:
            raise Unavailable("no token key is open")
        if self._trust is not None and self._active.kid not in self._trust.current.keys:
            # Withdrawn a moment ago; its successor was told of and is about to be opened. A token signed by
            # the old one would be dead on arrival, while a caller who is told to wait tries again.
            raise Unavailable("the open token key is not trusted any more")
        return self._active

    def follow(self, trust: TrustState) -> None:
        """From now on the active key has to be one that `trust` holds."""
        self._trust = trust
