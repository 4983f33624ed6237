"""Stores an upload's chunks, two groups at a time, and tells in their order what is durable.

While the database writes one group to the disk, it copies the next one on another
connection. Which of them count is decided under the upload's lock, one after the other.

If this fails: chunks are stored late, or the upload ends; none is acknowledged that is not durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from services.datasets.arrivals import AHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from services.datasets.arrivals import Arrivals
    from services.datasets.push import ArrivedChunk, OpenUpload

_AT_ONCE: Final = 2


class Storing:
    """What is being stored of one upload; to be used as a context, which ends it.

    Args:
        arrivals: gives the groups.
        upload: stores them.
        largest: bytes of the largest chunk that was announced. Of very large ones one group is in memory, not two.
    """

    def __init__(self, arrivals: Arrivals, upload: OpenUpload, *, largest: int) -> None:
        self._arrivals = arrivals
        self._upload = upload
        self._at_once = _AT_ONCE if largest <= AHEAD_BYTES else 1
        self._begun: deque[tuple[int, asyncio.Task[int]]] = deque()

    async def __aenter__(self) -> Storing:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for _, task in self._begun]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def stored(self) -> AsyncIterator[tuple[int, int]]:
        """How many chunks became durable and the offset wanted behind them, group by group.

        Raises:
            CasemateError: what was wrong with the chunks behind the last ones given.
        """
        while group := await self._arrivals.group():
            self._begin(group)
            while self._begun:
                await self._one_done()
                count, task = self._begun.popleft()
                yield count, task.result()

    async def _one_done(self) -> None:
        """Returns when the oldest group is stored; begins others meanwhile, each once as much waits as may."""
        oldest = self._begun[0][1]
        while len(self._begun) < self._at_once and not self._arrivals.ended:
            crowded = asyncio.ensure_future(self._arrivals.crowded())
            try:
                await asyncio.wait({oldest, crowded}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                crowded.cancel()
            if oldest.done():
                return
            self._begin(self._arrivals.waiting())
        await asyncio.wait({oldest})

    def _begin(self, group: list[ArrivedChunk]) -> None:
        if group:
            behind = self._begun[-1][1] if self._begun else None
            self._begun.append((len(group), asyncio.create_task(self._upload.store(group, behind=behind))))
