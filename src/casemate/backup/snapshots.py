"""One moment of three databases.

PostgreSQL exports a snapshot for one database at a time, so the three are taken one
right after the other, in an order in which whatever a snapshot names is in the ones
after it: auth's witness and cursor know no entry that the log has not, and each
version finds its data key. Shredding alone goes the other way, and waits for the
milliseconds in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.backup.places import AUTH, DATAKEYS, DATASETS
from casemate.settings import DatabaseSettings
from casemate.storage.pool import open_connection, storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casemate.storage.pool import Connection


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A database as it was; readable and importable while the block lasts."""

    database: DatabaseSettings
    name: str
    connection: Connection

    async def migrations(self) -> tuple[str, ...]:
        """The SHA-256 of each migration that was applied, in order."""
        with storage_errors():
            rows = await self.connection.fetch("SELECT sha256 FROM schema_migrations ORDER BY number")
        return tuple(row["sha256"].hex() for row in rows)

    async def log_entries(self) -> AsyncIterator[bytes]:
        """The transparency log's entries, in order."""
        with storage_errors():
            async for row in self.connection.cursor("SELECT entry FROM log_entries ORDER BY index", prefetch=500):
                yield row["entry"]


@asynccontextmanager
async def one_moment(
    databases: Mapping[str, DatabaseSettings], names: Sequence[str] = (AUTH, DATASETS, DATAKEYS)
) -> AsyncIterator[dict[str, Snapshot]]:
    """Snapshots of the named databases, by name.

    Raises:
        ConfigurationError: a login is refused.
        Unavailable: a database does not answer.
    """
    async with AsyncExitStack() as stack:
        found = {}
        async with _no_shredding(databases[DATASETS], wanted=DATAKEYS in names):
            for name in names:
                found[name] = await _snapshot(stack, databases[name])
        yield found


async def _snapshot(stack: AsyncExitStack, database: DatabaseSettings) -> Snapshot:
    connection = await _connected(stack, database)
    with storage_errors():
        await stack.enter_async_context(connection.transaction(isolation="repeatable_read", readonly=True))
        name = await connection.fetchval("SELECT pg_export_snapshot()")
    return Snapshot(database, name, connection)


@asynccontextmanager
async def _no_shredding(database: DatabaseSettings, *, wanted: bool) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if wanted:
            connection = await _connected(stack, database)
            with storage_errors():
                await stack.enter_async_context(connection.transaction())
                await connection.execute("LOCK TABLE shreddings IN SHARE ROW EXCLUSIVE MODE")
        yield


async def _connected(stack: AsyncExitStack, database: DatabaseSettings) -> Connection:
    connection = await open_connection(database)
    stack.push_async_callback(connection.close)
    with storage_errors():
        # A dump takes longer than any statement of a service.
        await connection.execute("SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0")
    return connection
