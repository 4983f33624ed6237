"""Digests chunks while the next ones are read: hashing leaves the interpreter's lock, so it takes a core of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from casemate.client.dataset_files import CutChunk
from casemate.signing.merkle import leaf_hash
from casemate.signing.statements import ChunkDigest

_THREADS: Final = 2
_AHEAD: Final = 4
"""Chunks that are in memory at once."""


def digest_chunks(chunks: Iterable[CutChunk]) -> tuple[ChunkDigest, ...]:
    """What the manifest says of each chunk, in order."""
    digests: list[ChunkDigest] = []
    waiting: deque[tuple[CutChunk, Future[bytes]]] = deque()

    def take() -> None:
        chunk, leaf = waiting.popleft()
        digests.append(ChunkDigest(leaf_hash=leaf.result(), bytes=chunk.size, rows=chunk.rows, records=chunk.records))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="digest") as threads:
        for chunk in chunks:
            waiting.append((chunk, threads.submit(leaf_hash, *chunk.parts)))
            if len(waiting) >= _AHEAD:
                take()
        while waiting:
            take()
    return tuple(digests)
