"""Reads an upload ahead: the next chunks are hashed, checked and sealed while those before them are stored.

What waits goes into one transaction, so that a slow disk is waited for once and
not once a chunk. How much may wait is bounded by bytes, whatever the client sends.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from services.datasets.push import ArrivedChunk, OpenUpload

AHEAD_BYTES: Final = 4 << 20
"""Sealed bytes that wait to be stored: four chunks of the usual size, one of the largest."""

_MOST_AHEAD: Final = 4

Step: TypeAlias = "tuple[int, bytes | memoryview]"
"""Offset and bytes of a chunk."""


class Arrivals:
    """The chunks of one upload, in groups; to be used as a context, which ends the reading.

    Args:
        steps: offset and bytes of each chunk as it comes, at last None where the supplier says that it is done.
        upload: checks and seals them.
        largest: bytes of the largest chunk that was announced.
    """

    def __init__(self, steps: AsyncIterator[Step | None], upload: OpenUpload, *, largest: int) -> None:
        self._steps = steps
        self._upload = upload
        ahead = max(1, min(_MOST_AHEAD, AHEAD_BYTES // largest))
        self._waiting: asyncio.Queue[ArrivedChunk | Exception | None] = asyncio.Queue(ahead)
        self._crowded = asyncio.Event()
        self._last: Exception | None = None
        self._ended = False
        self._left = False
        self.finished = False

    async def __aenter__(self) -> Arrivals:
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancellation can come to nothing, where it meets a read that ends at that moment: nobody is waited for then.
        self._left = True
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    @property
    def ended(self) -> bool:
        """Whether all that came was given; `finished` then says whether the supplier was done."""
        return self._ended

    async def group(self) -> list[ArrivedChunk]:
        """Waits for chunks, and gives in order all that wait; none at the end.

        Raises:
            CasemateError: what was wrong with the chunk behind the last one given.
        """
        if not self._ended and (group := self._take(await self._waiting.get()) + self.waiting()):
            return group
        if self._last is not None:
            raise self._last
        return []

    def waiting(self) -> list[ArrivedChunk]:
        """As `group`, without waiting and without raising."""
        group: list[ArrivedChunk] = []
        while not self._ended and not self._waiting.empty():
            group += self._take(self._waiting.get_nowait())
        self._crowded.clear()
        return group

    async def crowded(self) -> None:
        """Returns once as many chunks wait as may, or no more will come."""
        await self._crowded.wait()

    def _take(self, item: ArrivedChunk | Exception | None) -> list[ArrivedChunk]:
        if item is None or isinstance(item, Exception):
            self._ended, self._last = True, item
            return []
        return [item]

    async def _read(self) -> None:
        try:
            async for step in self._steps:
                if step is None:
                    self.finished = True
                    break
                offset, data = step
                await self._offer(await self._upload.take(offset=offset, data=data))
                del data, step  # or it would be kept while the next is awaited
        except Exception as error:  # noqa: BLE001  # given to whoever stores what came before it
            await self._offer(error)
        else:
            await self._offer(None)

    async def _offer(self, item: ArrivedChunk | Exception | None) -> None:
        if self._left:
            raise asyncio.CancelledError
        await self._waiting.put(item)
        if self._waiting.full() or item is None or isinstance(item, Exception):
            self._crowded.set()
