"""The one key that signs now, open in memory, and how it is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.clock import Clock
from casemate.errors import AlreadyExists, CasemateError, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KeyEncryptionKey
from services.auth import token_keys
from services.auth.key_schedule import SEALED, KeySchedule, Step, Turn, due, kept_by, next_step
from services.auth.kms_token_keys import KmsTokenKeys
from services.auth.opening import Authority
from services.auth.records import TokenKey
from services.auth.settings import AuthSettings
from services.auth.store.authority import AuthorityStore
from services.auth.store.token_keys import TokenKeyStore
from services.auth.token_keys import SigningTokenKey

if TYPE_CHECKING:
    from casemate.gate.core.trust import TrustState

LOOKED_AT: Final = timedelta(minutes=1)
"""How often the schedule is looked at; every replica does, one of them acts."""

_TRIAL: Final = b"a token key is tried before it is told of"  # no JWS begins so

_log = logging.getLogger(__name__)


class TokenKeyRing:
    """Holds the active key; loads it again whenever trust changes, and turns keys by their schedule.

    Args:
        store: the active key.
        keys: all keys, as their schedule changes them.
        kek: seals and opens private halves.
        clock: says when now is.
        schedule: how long keys live, and where they are kept.
        kms: keys that a KMS keeps; needed where the schedule or a row names one.
    """

    def __init__(
        self,
        *,
        store: AuthorityStore,
        keys: TokenKeyStore,
        kek: KeyEncryptionKey,
        clock: Clock,
        schedule: KeySchedule | None = None,
        kms: KmsTokenKeys | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._kek = kek
        self._clock = clock
        self._schedule = schedule or KeySchedule()
        self._kms = kms
        self._told_of: str | None = None
        self._active: SigningTokenKey | None = None
        self._trust: TrustState | None = None

    async def prepare(self) -> None:
        """Makes sure that there is an active key, and opens it; several replicas may do so at once.

        Raises:
            StoredDataUnreadable: there is an active key, and its row or its seal does not verify.
            FailedPrecondition: the KMS key that is to be the first cannot be one.
            Unavailable: KMS does not answer, and there is no key yet.
        """
        if await self._store.active_token_key() is None:
            try:
                first = await self._make(self._schedule.next_place([]) or SEALED)
                await self._store.add_first_token_key(first)
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
            self._active = await self._open(record)

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
                self._tell_if_stuck(keys)
                return done
            prepared = None
            if step.turn is Turn.PREPARE:
                made = await self._make(self._schedule.next_place(keys) or SEALED)
                prepared = replace(made, state="prepared", changed_at=now)
            elif step.turn is Turn.PUBLISH:
                # Opened as it was stored: a key that cannot sign must not be waited for.
                opened = await self._open(next(key for key in keys if key.kid == step.kid))
                await opened.sign(_TRIAL)
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
        """A key that may become the active one at once, when the present one is revoked.

        It is sealed here if every KMS key that was named is in use or revoked, or none can
        be had now: somebody has to sign, and everybody verifies either kind.
        """
        place = self._schedule.next_place(await self._keys.all())
        if place is not None:
            try:
                made = await self._make(place)
                await (await self._open(made)).sign(_TRIAL)
            except CasemateError as error:
                if place == SEALED:
                    raise
                _log.error("the next KMS key cannot be had; a sealed key takes its place: %s", error)
            else:
                return made
        return await self._make(SEALED)

    async def _make(self, place: str) -> TokenKey:
        if place == SEALED:
            return await token_keys.generate(self._kek, now=self._clock.now())
        return await self._of_kms().generate(place, now=self._clock.now())

    async def _open(self, record: TokenKey) -> SigningTokenKey:
        if kept_by(record) == SEALED:
            return await token_keys.open_key(self._kek, record)
        return await self._of_kms().open(record)

    def _of_kms(self) -> KmsTokenKeys:
        if self._kms is None:
            raise StoredDataUnreadable("a token key is kept by a KMS, and there is none here")
        return self._kms

    def _tell_if_stuck(self, keys: Sequence[TokenKey]) -> None:
        """Says once that a key is past its life and there is no place for its successor."""
        active = next((key for key in keys if key.state == "active"), None)
        waiting = any(key.state == "published" for key in keys)
        if active is None or waiting or self._schedule.next_place(keys) is not None or self._told_of == active.kid:
            return
        if self._clock.now() >= self._schedule.prepared_at(active) or not self._schedule.keeps(active):
            self._told_of = active.kid
            _log.error("token key %s is to be followed, and every KMS key that was named had its turn", active.kid)

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


async def open_ring(
    settings: AuthSettings, authority: Authority, stack: AsyncExitStack, *, clock: Clock, schedule: KeySchedule
) -> TokenKeyRing:
    """The ring of a service, with a key that signs. See `TokenKeyRing.prepare` for what it raises."""
    ring = TokenKeyRing(
        store=authority.store,
        keys=TokenKeyStore(pool=authority.pool, tables=authority.tables),
        kek=authority.kek,
        clock=clock,
        schedule=replace(schedule, places=settings.token_keys),
        kms=KmsTokenKeys(stack=stack, clock=clock),
    )
    await ring.prepare()
    return ring
