"""What goes by itself: uploads that were not finished in time, and versions beyond their dataset's retention.

Both are carried out through what shreds by request, with the same log entries and
receipts. Nothing is done while this machine's clock and the database's disagree: a
clock that jumped ahead would otherwise destroy what nobody meant.

If this fails: data are kept longer than was promised, or, where a clock is wrong on
both machines alike, shorter. The log has every schedule and everything that went.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, FieldViolation, InvalidRequest, NotFound, StoredDataUnreadable
from services.datasets.database import connected, transaction
from services.datasets.signed_table import SignedTable
from services.datasets.upload_rows import SELECT, UploadRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from casemate.clock import Clock
    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Pool
    from services.datasets.alarms import Alarms
    from services.datasets.discards import DiscardStore
    from services.datasets.labels import LabelStore
    from services.datasets.log_store import LogStore
    from services.datasets.logged import Logged
    from services.datasets.shred import Shredder
    from services.datasets.upload import Upload

LOOK_EVERY: Final = timedelta(minutes=1)
CLOCKS_AGREE_WITHIN: Final = timedelta(minutes=5)
LONGEST_KEEP: Final = timedelta(days=36_500)
_REMEMBERED: Final = 10_000
_READABLE: Final = SELECT + " WHERE tenant = $1 AND dataset = $2 AND state = 'promoted' ORDER BY version DESC"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is kept of a dataset: so many versions (zero: any number), each so long (none: without end).

    Raises:
        InvalidRequest: the time is not from one second to a hundred years.
    """

    tenant: str
    dataset: str
    keep_versions: int
    keep_for_seconds: int | None
    log_index: int = 0

    def __post_init__(self) -> None:
        longest = int(LONGEST_KEEP.total_seconds())
        if self.keep_for_seconds is not None and not 1 <= self.keep_for_seconds <= longest:
            text = "not from one second to a hundred years"
            raise InvalidRequest(f"keep_for: {text}", violations=(FieldViolation("keep_for", text),))

    def beyond(self, versions: Sequence[Upload], *, labelled: frozenset[int], now: datetime) -> list[Upload]:
        """The promoted versions, given newest first, that are to go.

        A label keeps a version from being one too many; it does not make it younger.
        """
        found = []
        for place, upload in enumerate(versions):
            surplus = 0 < self.keep_versions <= place and upload.version not in labelled
            if surplus or self._too_old(upload, now):
                found.append(upload)
        return found

    def _too_old(self, upload: Upload, now: datetime) -> bool:
        if self.keep_for_seconds is None or upload.promoted_at is None:
            return False
        return now >= upload.promoted_at + timedelta(seconds=self.keep_for_seconds)


class ScheduleStore:
    """Schedules in PostgreSQL."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms) -> None:
        self._pool = pool
        self._log = log
        self._rows = SignedTable(
            "retentions", key=("tenant", "dataset"), row=Schedule, authority=authority, alarms=alarms
        )
        self._alarms = alarms
        self._uploads = UploadRows(authority=authority, alarms=alarms)

    async def set(self, schedule: Schedule, *, by: Mapping[str, object]) -> int:
        """Keeps a schedule in place of the one before, and logs it; gives the entry's index. Repeated: no effect."""
        body = {
            "dataset": schedule.dataset,
            "keep_for_seconds": schedule.keep_for_seconds,
            "keep_versions": schedule.keep_versions,
            "tenant": schedule.tenant,
        }
        async with transaction(self._pool) as connection:
            before = await self._rows.get(connection, schedule.tenant, schedule.dataset, lock=True)
            if before is not None and (before.keep_versions, before.keep_for_seconds) == (
                schedule.keep_versions,
                schedule.keep_for_seconds,
            ):
                return before.log_index
            index = await self._log.append(connection, "retention", body | dict(by), by="datasets")
            row = Schedule(
                tenant=schedule.tenant,
                dataset=schedule.dataset,
                keep_versions=schedule.keep_versions,
                keep_for_seconds=schedule.keep_for_seconds,
                log_index=index,
            )
            await self._rows.put(connection, row)
            return index

    async def all(self) -> list[Schedule]:
        """Every schedule that verifies. The others alarm and are left out: no tenant's keeps up another's."""
        async with connected(self._pool) as connection:
            return await self._rows.readable(connection, "ORDER BY tenant, dataset")

    def require_last(self, schedule: Schedule, logged: Logged) -> None:
        """Returns if the log has no later schedule of this dataset.

        Raises:
            StoredDataUnreadable: it has: an older row was put back.
        """
        with self._alarms.on_authority():
            if logged.schedules.get((schedule.tenant, schedule.dataset)) != schedule.log_index:
                raise StoredDataUnreadable(f"the schedule of {schedule.tenant}/{schedule.dataset} is not the last one")

    def require_labels(self, schedule: Schedule, labels: Mapping[str, int], logged: Logged) -> None:
        """Returns if the labels in the table are those that the log has: none was taken away or put back.

        Raises:
            StoredDataUnreadable: they are not.
        """
        with self._alarms.on_authority():
            if labels != logged.labels.get((schedule.tenant, schedule.dataset), {}):
                raise StoredDataUnreadable(f"the labels of {schedule.tenant}/{schedule.dataset} are not the log's")

    async def versions(self, tenant: str, dataset: str) -> list[Upload]:
        """The readable versions of a dataset, newest first. Rows that do not verify alarm and are left out."""
        async with connected(self._pool) as connection:
            return self._uploads.readable(await connection.fetch(_READABLE, tenant, dataset))

    async def now(self) -> datetime:
        """What the database's clock says."""
        async with connected(self._pool) as connection:
            return datetime.fromisoformat(await connection.fetchval("SELECT clock_timestamp()::text"))


class Retention:
    """Carries schedules out, in every replica: whatever two do at once, they do once.

    Args:
        schedules: what is kept.
        discards: attempts that were never promoted.
        labels: what labels name.
        shredder: destroys keys.
        upload_lifetime: how long an upload may take, whatever its manifest allows.
        clock: time.
        clocks_agree_within: how far the two clocks may be apart.
    """

    def __init__(
        self,
        *,
        schedules: ScheduleStore,
        discards: DiscardStore,
        labels: LabelStore,
        shredder: Shredder,
        upload_lifetime: timedelta,
        clock: Clock,
        clocks_agree_within: timedelta = CLOCKS_AGREE_WITHIN,
    ) -> None:
        self._schedules = schedules
        self._discards = discards
        self._labels = labels
        self._shredder = shredder
        self._upload_lifetime = upload_lifetime
        self._clock = clock
        self._agree_within = clocks_agree_within
        self._ends: dict[UUID, datetime] = {}

    async def run(self) -> None:
        """Looks every minute, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            try:
                await self.look()
            except CasemateError as error:
                _LOGGER.warning("retention was not carried out: %s", error)

    async def look(self) -> int:
        """Expires and shreds what is due; how many attempts and versions that were.

        Raises:
            CasemateError: a database does not answer.
        """
        now = self._clock.now()
        if abs(now - await self._schedules.now()) > self._agree_within:
            _LOGGER.critical("retention: this machine's clock and the database's disagree; nothing is destroyed")
            return 0
        return await self._expire(now) + await self._keep(now)

    async def _expire(self, now: datetime) -> int:
        due = [upload for upload in await self._discards.unfinished() if now >= await self._end(upload)]
        if not due:
            return 0
        logged, expired = await self._discards.logged(), 0
        for upload in due:
            try:
                expired += await self._shredder.discard(upload, why="expired", logged=logged) is not None
            except StoredDataUnreadable:  # an old row put back; the alarm has sounded, and its key stays
                continue
        return expired

    async def _keep(self, now: datetime) -> int:
        gone = 0
        for schedule in await self._schedules.all():
            try:
                due = await self._due(schedule, now)
            except StoredDataUnreadable:  # the alarm has sounded; its versions stay, and the next one stands by itself
                continue
            for upload in due:
                gone += await self._shred(upload)
        return gone

    async def _shred(self, upload: Upload) -> bool:
        try:
            await self._shredder.shred(tenant=upload.tenant, dataset=upload.dataset, version=upload.version)
        except (NotFound, StoredDataUnreadable):  # another replica, or an operator, was first; or the alarm has sounded
            return False
        return True

    async def _due(self, schedule: Schedule, now: datetime) -> list[Upload]:
        """What is to go by a schedule, if its row and the labels' are those that the log has."""
        tenant, dataset = schedule.tenant, schedule.dataset
        labels = await self._labels.all(tenant, dataset)
        versions = await self._schedules.versions(tenant, dataset)
        if not schedule.beyond(versions, labelled=frozenset(labels.values()), now=now):
            return []
        logged = await self._discards.logged()
        self._schedules.require_last(schedule, logged)
        if labels != logged.labels.get((tenant, dataset), {}):  # somebody moved one meanwhile, or the table lies
            labels, logged = await self._labels.all(tenant, dataset), await self._discards.logged()
        self._schedules.require_labels(schedule, labels, logged)
        return schedule.beyond(versions, labelled=frozenset(labels.values()), now=now)

    async def _end(self, upload: Upload) -> datetime:
        """When an attempt expires; read once from its manifest."""
        limit = upload.started_at + self._upload_lifetime
        if upload.id not in self._ends:
            if len(self._ends) >= _REMEMBERED:
                self._ends.clear()
            try:
                self._ends[upload.id] = await self._discards.expires_at(upload)
            except InvalidRequest:
                _LOGGER.critical("the manifest of upload %s is not readable", upload.id)
                self._ends[upload.id] = limit
        return min(limit, self._ends[upload.id])
