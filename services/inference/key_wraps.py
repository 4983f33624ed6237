"""Models' data keys as wrapped keys, for rewrapping. Implements `rewrapping.WrapStore`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from casemate.sealing.rewrapping import StoredWrap
from services.inference.repository import WRAPPED_KEY, NotStored, Slot
from services.inference.vault import MAX_WRAPPED_KEY_BYTES, key_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.inference.repository import Store

_PAGE = 64


class ModelKeyWraps:
    """The wrapped key beside every version in the repository. Files and objects are read off the event loop."""

    def __init__(self, repository: Store) -> None:
        self._repository = repository

    async def count(self) -> int:
        """See `rewrapping.WrapStore`."""
        return len(await asyncio.to_thread(self._repository.slots))

    async def pages(self) -> AsyncIterator[Sequence[StoredWrap]]:
        """See `rewrapping.WrapStore`."""
        slots = await asyncio.to_thread(self._repository.slots)
        for start in range(0, len(slots), _PAGE):
            yield await asyncio.to_thread(self._read, slots[start : start + _PAGE])

    async def replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        """See `rewrapping.WrapStore`."""
        return await asyncio.to_thread(self._replace, changes)

    def _read(self, slots: Sequence[Slot]) -> list[StoredWrap]:
        found = []
        for slot in slots:
            try:
                with self._repository.open(slot) as stored:
                    wrapped = stored.read(WRAPPED_KEY, limit=MAX_WRAPPED_KEY_BYTES)
            except NotStored:  # gone meanwhile
                continue
            found.append(
                StoredWrap(identifier=json.dumps(slot.parts), context=key_context(slot), stored=wrapped),
            )
        return found

    def _replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        done = 0
        for wrap, fresh in changes:
            tenant, model, number = json.loads(wrap.identifier)
            done += self._repository.replace_wrapped_key(Slot(tenant, model, int(number)), wrap.stored, fresh)
        return done
