"""Opens what auth stands on: its database, its key-encryption key, and the key of its rows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.clock import SystemClock
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.provider import load_kek
from casemate.storage.migrations import migrate
from casemate.storage.pool import open_pool
from casemate.transport.metrics import Metrics
from services.auth.settings import AuthSettings
from services.auth.store.authority import AuthorityStore, holds_rows
from services.auth.store.table import Alarms
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Pool

_SCHEMA: Final = Path(__file__).parent / "schema"
_CLOSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Everything that stands on the database and the keys."""

    pool: Pool
    kek: KeyEncryptionKey
    key: AuthorityKey
    alarms: Alarms
    tables: AuthorityTables
    store: AuthorityStore
    metrics: Metrics


async def open_authority(settings: AuthSettings, stack: AsyncExitStack, metrics: Metrics) -> Authority:
    """Opens the database, brings its schema up to date, and opens the keys.

    Raises:
        ConfigurationError: a file, the login or a migration; or the authority key is gone.
        StoredDataUnreadable: the authority key is not under this KEK.
        Unavailable: the database is not there.
    """
    pool = await open_pool(settings.database)
    stack.push_async_callback(_close, pool)
    await migrate(pool, _SCHEMA)
    kek = await open_kek(settings, stack, metrics)
    key = await AuthorityKey.load_or_create(kek, settings.authority_key, create=not await holds_rows(pool))
    alarms = Alarms(count=lambda: metrics.increment("authority_alarms_total"))
    tables = AuthorityTables(key=key, alarms=alarms)
    store = AuthorityStore(pool=pool, tables=tables)
    return Authority(pool=pool, kek=kek, key=key, alarms=alarms, tables=tables, store=store, metrics=metrics)


async def migrate_database(settings: AuthSettings) -> None:
    """Brings the schema up to date and leaves: what a rollout waits for.

    Raises:
        ConfigurationError: the login or a migration.
        Unavailable: the database is not there.
    """
    async with AsyncExitStack() as stack:
        pool = await open_pool(settings.database)
        stack.push_async_callback(_close, pool)
        await migrate(pool, _SCHEMA)


async def open_kek(settings: AuthSettings, stack: AsyncExitStack, metrics: Metrics) -> KeyEncryptionKey:
    """The key-encryption key, until `stack` ends.

    Raises:
        ConfigurationError: as `load_kek`.
    """
    failed = metrics.counting("kek_reload_failed_total")
    return await stack.enter_async_context(load_kek(settings.kek, clock=SystemClock(), reload_failed=failed))


async def _close(pool: Pool) -> None:
    """Closes a pool; connections that are still busy after ten seconds are cut."""
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await pool.close()
    except TimeoutError:
        pool.terminate()
