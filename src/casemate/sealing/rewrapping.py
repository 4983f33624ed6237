"""Wraps stored keys anew after their key-encryption key was rotated, while all goes on.

What is left to do is what is not under the current version: nothing else is
remembered, so an interrupted run is simply begun again. A stored wrap is replaced
only if it still is the one that was read: a key deleted meanwhile stays deleted,
and a newer wrap stays.

What a key is for is read from beside it. That is no authority: the provider opens a
wrap only for the context that it was made for, and the new wrap is for the same.

If this fails: a key stays under an old version. It opens as long as that version does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from casemate.errors import StoredDataUnreadable
from casemate.sealing.kek import KekState, KeyEncryptionKey
from casemate.sealing.keys import KeyContext, WrappedKey

AT_ONCE: Final = 16
"""Wraps that a provider is asked for at the same time."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWrap:
    """A wrapped key as it lies in its store.

    Attributes:
        identifier: names it in its store and in the log.
        context: what it is said to be for.
        stored: its bytes, believed nothing.
    """

    identifier: str
    context: KeyContext
    stored: bytes


class WrapStore(Protocol):
    """Where wrapped keys lie: a table, a file, a repository."""

    async def count(self) -> int:
        """How many there are now."""
        ...

    def pages(self) -> AsyncIterator[Sequence[StoredWrap]]:
        """All of them, some at a time."""
        ...

    async def replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        """Puts new bytes in the place of each that still is what was read; durable when it returns.

        Gives how many were.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedUnder:
    """Which version of which key-encryption key wraps; `kek_id` is empty where that is not legible."""

    purpose: str
    kek_id: str
    kek_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapProgress:
    """How far a rewrapping is.

    Attributes:
        seen: keys looked at.
        total: keys that there were at the beginning.
        rewrapped: keys wrapped anew.
        failed: keys that do not open; they stay as they are.
    """

    seen: int = 0
    total: int = 0
    rewrapped: int = 0
    failed: int = 0


async def survey(stores: Sequence[WrapStore]) -> Counter[WrappedUnder]:
    """How many keys are wrapped under what. Opens none of them."""
    found: Counter[WrappedUnder] = Counter()
    for store in stores:
        async for page in store.pages():
            found.update(_wrapped_under(wrap) for wrap in page)
    return found


async def rewrap_all(kek: KeyEncryptionKey, stores: Sequence[WrapStore]) -> AsyncIterator[RewrapProgress]:
    """Wraps anew whatever is not under the current version, and tells after each page.

    The first progress comes before any work, the last one is the result.

    Raises:
        Unavailable, FailedPrecondition: the provider does not answer, or refuses the
            key. What was told is durable; begin again for the rest.
    """
    state = await kek.state()
    seen = rewrapped = failed = 0
    total = sum([await store.count() for store in stores])
    yield RewrapProgress(total=total)
    for store in stores:
        async for page in store.pages():
            due = [wrap for wrap in page if not _is_current(wrap, state)]
            results = await _rewrap(kek, due)
            changes = [(wrap, new) for wrap, new in zip(due, results, strict=True) if new is not None]
            if changes:
                rewrapped += await store.replace(changes)
            failed += len(due) - len(changes)
            seen += len(page)
            yield RewrapProgress(seen=seen, total=max(total, seen), rewrapped=rewrapped, failed=failed)


async def _rewrap(kek: KeyEncryptionKey, wraps: Sequence[StoredWrap]) -> list[bytes | None]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(wrap: StoredWrap) -> bytes | None:
        async with gate:
            try:
                return (await kek.rewrap(WrappedKey.parse(wrap.stored), wrap.context)).to_bytes()
            except StoredDataUnreadable as error:
                _LOGGER.critical("wrapped key %s is not rewrapped: %s", wrap.identifier, error)
                return None

    tasks = [asyncio.ensure_future(one(wrap)) for wrap in wraps]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _is_current(wrap: StoredWrap, state: KekState) -> bool:
    under = _wrapped_under(wrap)
    return under.kek_id == state.kek_id and under.kek_version >= state.current_version > 0


def _wrapped_under(wrap: StoredWrap) -> WrappedUnder:
    try:
        parsed = WrappedKey.parse(wrap.stored)
    except StoredDataUnreadable:
        return WrappedUnder(purpose=wrap.context.purpose, kek_id="", kek_version=0)
    return WrappedUnder(purpose=wrap.context.purpose, kek_id=parsed.kek_id, kek_version=parsed.kek_version)
