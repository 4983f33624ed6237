"""The one key that signs now, open in memory, and how it is replaced."""

from __future__ import annotations

import logging

from casemate.clock import Clock
from casemate.errors import AlreadyExists, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KeyEncryptionKey
from services.auth import token_keys
from services.auth.records import TokenKey
from services.auth.store.authority import AuthorityStore
from services.auth.token_keys import SigningTokenKey

_log = logging.getLogger(__name__)


class TokenKeyRing:
    """Holds the active key; loads it again whenever trust changes."""

    def __init__(self, *, store: AuthorityStore, kek: KeyEncryptionKey, clock: Clock) -> None:
        self._store = store
        self._kek = kek
        self._clock = clock
        self._active: SigningTokenKey | None = None

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
        return self._active
