"""What was cosigned last, as an authority row. One transaction reads it, lets it be judged, and replaces it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from casemate.storage.pool import storage_errors
from services.auth.store.table import AuthorityTable, Layout

if TYPE_CHECKING:
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.auth.store.table import Alarms

_LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"casemate.log-witness").digest()[:8], signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessed:
    """The last checkpoint of a log that was cosigned.

    Attributes:
        origin: the log's name.
        log_key: the key that the log was first seen with, as C2SP tools write it.
        size: of the tree.
        root: of the tree.
        cosigned_at: when.
    """

    origin: str
    log_key: str
    size: int
    root: bytes
    cosigned_at: datetime


WITNESSED: Final[Layout[Witnessed]] = Layout(
    table="log_witness",
    key=("origin",),
    columns=("origin", "log_key", "size", "root", "cosigned_at"),
    to_columns=lambda row: (row.origin, row.log_key, row.size, row.root, row.cosigned_at),
    from_columns=lambda row: Witnessed(**row),
)


class WitnessStore:
    """Keeps what was cosigned last."""

    def __init__(self, *, pool: Pool, key: AuthorityKey, alarms: Alarms) -> None:
        self._pool = pool
        self._table = AuthorityTable(WITNESSED, key=key, alarms=alarms)

    async def replace(self, origin: str, judge: Callable[[Witnessed | None], Witnessed | None]) -> Witnessed | None:
        """Replaces what is known of a log by what `judge` makes of it, durable when it returns.

        Judgements wait for one another, over all replicas.

        Args:
            origin: the log's name.
            judge: gives what to keep, nothing to leave it, or raises.

        Returns:
            What is known from now on.

        Raises:
            StoredDataUnreadable: the row does not verify. It is not taken for absent.
        """
        async with self._alone() as connection:
            known = await self._table.get(connection, origin)
            fresh = judge(known)
            if fresh is None:
                return known
            if known is None:
                await self._table.insert(connection, fresh)
            else:
                await self._table.replace(connection, fresh)
            return fresh

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[Connection]:
        with storage_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
                yield connection
