"""Destroys the data key of a version, for ever and with a receipt. Knows no transport.

First, in one transaction: the state, with its MAC, and the entry in the log. From
then on the version is not read, whatever comes. Then the wrapped key is deleted from
its own database, and it is noted when. Whatever was interrupted in between is
finished by the next call, by any replica's next look, and at every start.

If this fails: a key lives on that should be gone. The version's state still keeps
every replica from opening it; whoever has the data-keys database, the key-encryption
key and the rows could.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, NotFound, StoredDataUnreadable
from casemate.signing.shred_receipt import ShredReceipt, sign_shred_receipt
from services.datasets.key_store import rows_context
from services.datasets.upload import UploadState

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.signing.keys import SigningKey
    from services.datasets.discards import DiscardStore
    from services.datasets.key_store import DataKeyStore
    from services.datasets.logged import Logged
    from services.datasets.shred_store import Judge, ShredStore
    from services.datasets.shreddings import Shredding
    from services.datasets.upload import Upload

_LOGGER = logging.getLogger(__name__)

LOOK_EVERY: Final = timedelta(seconds=1)
DEAF_AFTER: Final = timedelta(seconds=4)
"""Without news for so long, nothing stays in memory that might have been shredded."""


class Shredder:
    """Shreds versions, and hears of what other replicas shredded.

    Args:
        versions: states and the log.
        discards: those of attempts that were never promoted.
        keys: the data keys.
        log: name of the log, as its checkpoints have it.
        log_key: signs receipts.
        retention: how long a backup of the data keys is kept at most.
        clock: time.
    """

    def __init__(
        self,
        *,
        versions: ShredStore,
        discards: DiscardStore,
        keys: DataKeyStore,
        log: str,
        log_key: SigningKey,
        retention: timedelta,
        clock: Clock,
    ) -> None:
        self._versions = versions
        self._discards = discards
        self._keys = keys
        self._log = log
        self._log_key = log_key
        self._retention = retention
        self._clock = clock
        self._heard_index = -1
        self._heard_at = clock.monotonic()
        self._unfinished: list[tuple[Upload, Shredding]] = []

    async def shred(self, *, tenant: str, dataset: str, version: int, judge: Judge | None = None) -> bytes:
        """Shreds a promoted version and gives the signed receipt. Repeated, it gives the same one.

        Args:
            tenant: whose.
            dataset: of which dataset.
            version: which.
            judge: see `ShredStore.shred`.

        Raises:
            NotFound: no such version was ever promoted.
            Unavailable: a database does not answer. What was begun is finished by itself.
        """
        if "\x00" in dataset:
            raise NotFound("no dataset has such a name")
        upload, shredding = await self._versions.shred(tenant=tenant, dataset=dataset, version=version, judge=judge)
        shredding = await self._finish(upload, shredding)
        return sign_shred_receipt(self._receipt(upload, shredding), self._log_key)

    async def discard(self, upload: Upload, *, why: str, logged: Logged) -> bytes | None:
        """Destroys the key and the rows of an attempt that was never promoted; nothing if it was, meanwhile.

        Raises:
            StoredDataUnreadable: the log has it promoted: its row is an older one, put back.
            Unavailable: a database does not answer. What was begun is finished by itself.
        """
        upload, shredding = await self._discards.discard(upload.id, why=why, logged=logged)
        if shredding is None:
            return None
        shredding = await self._finish(upload, shredding)
        return sign_shred_receipt(self._receipt(upload, shredding), self._log_key)

    async def discard_all(self, *, tenant: str, dataset: str, version: int) -> list[bytes]:
        """Discards every attempt at a version that was never promoted; gives their receipts, oldest first.

        Raises:
            NotFound: there is none.
            StoredDataUnreadable: one of them is promoted in the log.
            Unavailable: a database does not answer. What was begun is finished by itself.
        """
        attempts = await self._discards.attempts(tenant, dataset, version)
        if not attempts:  # before the whole log is read for nothing
            raise NotFound(f"no attempt at version {version} of {tenant}/{dataset}")
        logged = await self._discards.logged()
        receipts = [await self.discard(upload, why="shredded", logged=logged) for upload in attempts]
        found = [receipt for receipt in receipts if receipt is not None]
        if not found:
            raise NotFound(f"no attempt at version {version} of {tenant}/{dataset}")
        return found

    async def look(self) -> None:
        """Drops from memory what any replica shredded since the last look, and finishes what is not finished.

        Raises:
            CasemateError: a database does not answer.
        """
        await self._finish_all(await self._hear())

    async def sweep(self) -> int:
        """Deletes again whatever key of a shredded version is there: a restored backup brings them back."""
        found = 0
        for upload in await self._versions.shredded():
            found += await self._delete_keys(upload)
        if found:
            _LOGGER.critical("%d data keys of shredded versions were there, and are deleted again", found)
        return found

    async def run(self) -> None:
        """Sweeps once, then looks every second, for ever.

        What is to be deleted is deleted beside it: a deletion that takes long, or a database that
        hangs, must not keep this replica from knowing that it has heard nothing.
        """
        tidying = asyncio.create_task(self._tidy())
        try:
            while True:
                await self._listen()
                await asyncio.sleep(LOOK_EVERY.total_seconds())
        finally:
            tidying.cancel()

    async def _listen(self) -> None:
        """Hears once, for no longer than this replica may be deaf; then nothing stays in memory."""
        left = self._heard_at + DEAF_AFTER.total_seconds() - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(left, LOOK_EVERY.total_seconds())):
                self._unfinished = await self._hear()
        except (CasemateError, TimeoutError) as error:
            _LOGGER.warning("what was shredded elsewhere is not known: %s", str(error) or type(error).__name__)
            if self._clock.monotonic() - self._heard_at >= DEAF_AFTER.total_seconds():
                self._keys.ring.drop()

    async def _hear(self) -> list[tuple[Upload, Shredding]]:
        """Drops from memory what was shredded since it heard last; gives what is not finished."""
        asked_at = self._clock.monotonic()
        news = await self._versions.shredded_after(self._heard_index)
        for upload, shredding in news:
            self._keys.forget(rows_context(upload.tenant, upload.dataset, upload.version))
            self._heard_index = max(self._heard_index, shredding.log_index)
        self._heard_at = asked_at
        return [(upload, shredding) for upload, shredding in news if shredding.key_deleted_at is None]

    async def _tidy(self) -> None:
        swept = False
        while True:
            try:
                if not swept:
                    await self.sweep()
                    swept = True
                await self._finish_all(self._unfinished)
            except CasemateError as error:
                _LOGGER.warning("what was shredded is not deleted yet: %s", error)
            except Exception as error:  # noqa: BLE001  # deleting goes on whatever one of them runs into
                _LOGGER.critical("what was shredded is not deleted yet: %s", type(error).__name__)
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def _finish_all(self, unfinished: list[tuple[Upload, Shredding]]) -> None:
        failed: CasemateError | None = None
        for upload, shredding in unfinished:
            try:
                await self._finish(upload, shredding)
            except CasemateError as error:
                failed = failed or error  # the keys behind it are to go all the same
        if failed is not None:
            raise failed

    async def _finish(self, upload: Upload, shredding: Shredding) -> Shredding:
        context = rows_context(upload.tenant, upload.dataset, upload.version)
        if shredding.key_deleted_at is not None:
            self._keys.forget(context)
            return shredding
        await self._delete_keys(upload)
        if upload.state is UploadState.DISCARDED:
            await self._discards.delete_rows(upload)
        now = self._clock.now()
        return await self._versions.finish_shredding(shredding.finished(at=now, no_backup_after=now + self._retention))

    async def _delete_keys(self, upload: Upload) -> int:
        """Deletes the keys of a version, or the one key of an attempt: another may be the version."""
        context = rows_context(upload.tenant, upload.dataset, upload.version)
        if upload.state is UploadState.DISCARDED:
            return await self._keys.delete_one(upload.data_key, context)
        return await self._keys.delete([upload.data_key], context)

    def _receipt(self, upload: Upload, shredding: Shredding) -> ShredReceipt:
        if shredding.key_deleted_at is None or shredding.no_backup_after is None:
            raise StoredDataUnreadable(f"the shredding of {upload.id} is not finished")
        return ShredReceipt(
            log=self._log,
            log_index=shredding.log_index,
            tenant=upload.tenant,
            dataset=upload.dataset,
            version=upload.version,
            root=upload.root.hex(),
            manifest_sha256=upload.manifest_sha256.hex(),
            shredded_at=shredding.shredded_at,
            key_deleted_at=shredding.key_deleted_at,
            no_backup_after=shredding.no_backup_after,
        )
