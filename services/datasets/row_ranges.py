"""The sealed rows of one upload, counted and deleted some batches at a time.

A statement has half a minute. At once, the rows of a large version, or of any on a
slow disk, take longer: it could then never be promoted, or its rows never be freed.

If this fails: promotion miscounts rows, and a puller finds a batch that is not the signed one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.datasets.database import connected

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from casemate.storage.pool import Connection, Pool

BATCHES_AT_ONCE: Final = 64
"""At most half a gibibyte, as a chunk has at most eight mebibytes."""

_WHERE: Final = "FROM sealed_rows WHERE upload = $1 AND batch BETWEEN $2 AND $3"
_LEAST: Final = -(2**31)
_MOST: Final = 2**31 - 1
"""What a batch's number may be in the table."""


def batch_ranges(batches: int) -> Iterable[tuple[int, int]]:
    """First and last batch of each range, and of what is before and behind so many: there nothing should be."""
    yield _LEAST, -1
    for first in range(0, batches, BATCHES_AT_ONCE):
        yield first, min(first + BATCHES_AT_ONCE, batches) - 1
    yield batches, _MOST


async def count_rows(connection: Connection, upload_id: UUID, *, batches: int) -> int:
    """All rows that are stored of an upload of so many batches."""
    counts = [
        await connection.fetchval(f"SELECT count(*) {_WHERE}", upload_id, first, last)
        for first, last in batch_ranges(batches)
    ]
    return sum(counts)


async def delete_rows(pool: Pool, upload_id: UUID, *, batches: int) -> None:
    """Deletes all rows of an upload; each range is durable by itself, so that a second try has less to do."""
    for first, last in batch_ranges(batches):
        async with connected(pool) as connection:
            await connection.execute(f"DELETE {_WHERE}", upload_id, first, last)
