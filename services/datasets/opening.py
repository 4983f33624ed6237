"""Opens what the datasets service stands on: keys, databases, and everything that is kept in them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.provider import load_kek
from casemate.signing.keys import SigningKey
from casemate.storage.migrations import migrate
from casemate.storage.pool import open_pool
from services.datasets.alarms import Alarms
from services.datasets.decisions import Decisions
from services.datasets.discards import DiscardStore
from services.datasets.key_store import DataKeyStore
from services.datasets.labels import LabelStore
from services.datasets.lineage import Lineage
from services.datasets.log_store import LogStore, holds_rows
from services.datasets.schedules import ScheduleStore
from services.datasets.shred import Shredder
from services.datasets.shred_store import ShredStore
from services.datasets.store import VersionStore
from services.datasets.upload_limits import UploadLimits

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.storage.pool import Pool
    from casemate.transport.metrics import Metrics
    from services.datasets.settings import DatasetsSettings

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything that the servicers stand on."""

    kek: KeyEncryptionKey
    versions: VersionStore
    shreds: ShredStore
    keys: DataKeyStore
    discards: DiscardStore
    decisions: Decisions
    labels: LabelStore
    lineage: Lineage
    schedules: ScheduleStore
    log: LogStore
    alarms: Alarms
    pool: Pool

    async def ping(self) -> None:
        """Returns if both databases answer."""
        await self.versions.ping()
        await self.keys.ping()


async def open_stores(
    settings: DatasetsSettings, stack: AsyncExitStack, metrics: Metrics, clock: Clock
) -> tuple[Stores, SigningKey]:
    """Opens keys and databases until `stack` ends; gives the stores and the log's key.

    Raises:
        ConfigurationError: a file, a login or a migration.
        StoredDataUnreadable: a key is not under this key-encryption key.
        Unavailable: a database, or the key-encryption key, does not answer.
    """
    failed = metrics.counting("kek_reload_failed_total")
    kek = await stack.enter_async_context(load_kek(settings.kek, clock=clock, reload_failed=failed))
    pool = await open_pool(settings.database)
    stack.push_async_callback(_close, pool)
    key_pool = await open_pool(settings.data_keys)
    stack.push_async_callback(_close, key_pool)
    await _migrate(pool, key_pool)
    authority = await AuthorityKey.load_or_create(kek, settings.authority_key, create=not await holds_rows(pool))
    alarms = Alarms(metrics.increment)
    log = LogStore(pool=pool, authority=authority, alarms=alarms, clock=clock)
    await log.prepare()
    keys = DataKeyStore(pool=key_pool, kek=kek, clock=clock)
    seed = await keys.log_seed()
    lineage = Lineage(pool=pool, authority=authority, log=log, alarms=alarms)
    await lineage.prepare()
    decisions = Decisions(pool=pool, log=log)
    limits = UploadLimits(per_supplier=settings.uploads_per_supplier, per_tenant=settings.uploads_per_tenant)
    stores = Stores(
        kek=kek,
        versions=VersionStore(pool=pool, authority=authority, log=log, alarms=alarms, clock=clock, limits=limits),
        shreds=ShredStore(pool=pool, authority=authority, log=log, alarms=alarms, clock=clock),
        discards=DiscardStore(pool=pool, authority=authority, log=log, alarms=alarms, clock=clock),
        decisions=decisions,
        labels=LabelStore(pool=pool, authority=authority, log=log, alarms=alarms, decisions=decisions),
        lineage=lineage,
        schedules=ScheduleStore(pool=pool, authority=authority, log=log, alarms=alarms, decisions=decisions),
        keys=keys,
        log=log,
        alarms=alarms,
        pool=pool,
    )
    return stores, SigningKey(Ed25519PrivateKey.from_private_bytes(seed.reveal()))


async def migrate_databases(settings: DatasetsSettings) -> None:
    """Brings both schemas up to date and leaves: what a rollout waits for.

    Raises:
        ConfigurationError: a login or a migration.
        Unavailable: a database is not there.
    """
    async with AsyncExitStack() as stack:
        pool = await open_pool(settings.database)
        stack.push_async_callback(_close, pool)
        key_pool = await open_pool(settings.data_keys)
        stack.push_async_callback(_close, key_pool)
        await _migrate(pool, key_pool)


async def _migrate(pool: Pool, key_pool: Pool) -> None:
    await migrate(pool, _HERE / "schema")
    await migrate(key_pool, _HERE / "datakeys_schema")


def open_shredder(settings: DatasetsSettings, stores: Stores, log_key: SigningKey, clock: Clock) -> Shredder:
    """What shreds, and hears of shreddings."""
    return Shredder(
        versions=stores.shreds,
        discards=stores.discards,
        keys=stores.keys,
        log=log_origin(settings.identity.trust_domain),
        log_key=log_key,
        retention=settings.backup_retention,
        clock=clock,
    )


def log_origin(trust_domain: str) -> str:
    """The name that the log signs its checkpoints under."""
    return f"datasets.{trust_domain}/log"


async def _close(pool: Pool) -> None:
    """Closes a pool; connections that are still busy after ten seconds are cut."""
    try:
        async with asyncio.timeout(10):
            await pool.close()
    except TimeoutError:
        pool.terminate()
