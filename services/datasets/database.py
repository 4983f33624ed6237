"""A connection for the length of a block, with bounded waiting and our errors."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from casemate.storage.pool import storage_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Literal

    from casemate.storage.pool import Connection, Pool

_WAIT_SECONDS: Final = 10.0
"""How long a call waits for one of the pool's connections before it is UNAVAILABLE."""


@asynccontextmanager
async def connected(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool.

    Raises:
        Unavailable, Conflict: by `storage_errors`; also when none is free in time.
    """
    with storage_errors():
        async with pool.acquire(timeout=_WAIT_SECONDS) as connection:
            yield connection


@asynccontextmanager
async def transaction(
    pool: Pool, *, isolation: Literal["read_committed", "repeatable_read"] = "read_committed"
) -> AsyncIterator[Connection]:
    """A connection inside a transaction: durable when the block ends, undone when it raises."""
    async with connected(pool) as connection, connection.transaction(isolation=isolation):
        yield connection
