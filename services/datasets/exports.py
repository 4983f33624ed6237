"""Exports: an entry in the log before the first batch leaves, another when the last has, and a signed receipt.

An export that is cut (by its reader, by a revocation, by a fault) has its second
entry too, which says how much had been handed over to be sent. One whose service was
killed has the first entry alone: it counts as all of it.

If this fails: somebody reads a version and the log does not tell; the audit has the call.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError
from casemate.signing.export_receipt import ExportReceipt, numbers_sha256, sign_export_receipt

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.clock import Clock
    from casemate.gate.core.caller import Caller
    from casemate.signing.batch_order import BatchOrder
    from casemate.signing.keys import SigningKey
    from services.datasets.log_store import LogStore
    from services.datasets.pull import OpenedBatch, ReadableVersion

_LOGGER = logging.getLogger(__name__)
_LAST_WORDS: Final = timedelta(seconds=5)
"""How long a service that ends waits for entries about exports that it cut."""


@dataclass(slots=True)
class Export:
    """One export under way."""

    readable: ReadableVersion
    order: BatchOrder
    caller: Caller
    log_index: int
    started_at: datetime
    numbers: list[int] = field(default_factory=list)
    rows: int = 0

    def count(self, batch: OpenedBatch) -> None:
        """Notes a batch that is about to be sent."""
        self.numbers.append(batch.number)
        self.rows += len(batch.records)


@dataclass(frozen=True, slots=True)
class ExportProof:
    """The signed receipt, and the log's entry that has its digest."""

    envelope: bytes
    log_index: int


class Exports:
    """Begins and ends exports.

    Args:
        log: where entries go.
        origin: the log's name.
        log_key: signs receipts.
        clock: time.
    """

    def __init__(self, *, log: LogStore, origin: str, log_key: SigningKey, clock: Clock) -> None:
        self._log = log
        self._origin = origin
        self._log_key = log_key
        self._clock = clock
        self._ending: set[asyncio.Task[None]] = set()

    async def begin(self, readable: ReadableVersion, order: BatchOrder, caller: Caller) -> Export:
        """Logs that an export begins; durable before anything is sent."""
        upload = readable.upload
        body = {
            "caller": caller.spiffe_id,
            "client": caller.client_id,
            "dataset": upload.dataset,
            "position": order.position,
            "request": caller.request_id,
            "root": upload.root.hex(),
            "shard": order.shard,
            "shards": order.shards,
            "shuffle_seed": order.shuffle_seed,
            "tenant": upload.tenant,
            "version": upload.version,
        }
        index = await self._log.append_alone("export", body, by="datasets")
        return Export(readable, order, caller, index, self._clock.now())

    async def end(self, export: Export) -> ExportProof:
        """Signs the receipt of an export that sent all that was asked for, and logs its digest."""
        envelope = sign_export_receipt(self._receipt(export), self._log_key)
        body = self._body(export) | {"complete": True, "receipt_sha256": hashlib.sha256(envelope).hexdigest()}
        return ExportProof(envelope, await self._log.append_alone("export-end", body, by="datasets"))

    def cut(self, export: Export) -> None:
        """Has it logged that an export ended early. Returns at once: the call that ends cannot wait."""
        task = asyncio.get_running_loop().create_task(self._log_cut(export))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Waits for entries that are being written."""
        if self._ending:
            await asyncio.wait(self._ending, timeout=_LAST_WORDS.total_seconds())

    async def _log_cut(self, export: Export) -> None:
        try:
            await self._log.append_alone("export-end", self._body(export) | {"complete": False}, by="datasets")
        except CasemateError as error:
            _LOGGER.warning("the end of export %d is not in the log: %s", export.log_index, error)

    def _body(self, export: Export) -> dict[str, object]:
        return {
            "batches": len(export.numbers),
            "batches_sha256": numbers_sha256(export.numbers),
            "export": export.log_index,
            "rows": export.rows,
        }

    def _receipt(self, export: Export) -> ExportReceipt:
        upload, order, caller = export.readable.upload, export.order, export.caller
        return ExportReceipt(
            log=self._origin,
            log_index=export.log_index,
            caller=caller.spiffe_id,
            client=caller.client_id or "",
            request=caller.request_id,
            tenant=upload.tenant,
            dataset=upload.dataset,
            version=upload.version,
            root=upload.root.hex(),
            manifest_sha256=upload.manifest_sha256.hex(),
            shard=order.shard,
            shards=order.shards,
            shuffle_seed=order.shuffle_seed,
            position=order.position,
            batches=len(export.numbers),
            batches_sha256=numbers_sha256(export.numbers),
            rows=export.rows,
            started_at=export.started_at,
            ended_at=self._clock.now(),
        )
