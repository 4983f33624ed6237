"""How long versions of datasets are kept: schedules, and which versions are beyond one.

The log has every schedule and is the authority; the table is what else there is of them.
Where they disagree that alarms, and what the log has is carried out: to take a row away
keeps nothing, and to put one back shreds nothing.

If this fails: versions go that were to stay, or stay that were to go.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest, StoredDataUnreadable
from services.datasets.database import connected, transaction
from services.datasets.signed_table import SignedTable
from services.datasets.upload_rows import SELECT, UploadRows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Pool
    from services.datasets.alarms import Alarms
    from services.datasets.decisions import Decisions
    from services.datasets.log_store import LogStore
    from services.datasets.upload import Upload

LONGEST_KEEP: Final = timedelta(days=36_500)
_READABLE: Final = SELECT + " WHERE tenant = $1 AND dataset = $2 AND state = 'promoted' ORDER BY version DESC"


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

    def keeps_as(self, other: Schedule) -> bool:
        """Whether both keep the same."""
        return (self.keep_versions, self.keep_for_seconds) == (other.keep_versions, other.keep_for_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surplus:
    """When a version is one too many.

    Attributes:
        counts: whether a version takes the place of an older one: not while its signer's signature does not count.
        kept_for: how long one stays after others took its place, so that whoever pushes with a
            stolen key has others go no sooner than that.
    """

    counts: Callable[[Upload], bool]
    kept_for: timedelta


def versions_beyond(
    schedule: Schedule, versions: Sequence[Upload], *, surplus: Surplus, labelled: frozenset[int], now: datetime
) -> list[Upload]:
    """The promoted versions, given newest first, that are to go.

    A label keeps a version from being one too many; it does not make it younger.
    """
    found: list[Upload] = []
    newer: list[datetime] = []  # when those came that count, the newest first
    keep = schedule.keep_versions
    for upload in versions:
        # The last of the newest `keep` that came after it took its place.
        pushed_out = 0 < keep <= len(newer) and now >= newer[-keep] + surplus.kept_for
        if (pushed_out and upload.version not in labelled) or _is_too_old(schedule, upload, now):
            found.append(upload)
        if upload.promoted_at is not None and surplus.counts(upload):
            newer.append(upload.promoted_at)
    return found


def _is_too_old(schedule: Schedule, upload: Upload, now: datetime) -> bool:
    if schedule.keep_for_seconds is None or upload.promoted_at is None:
        return False
    return now >= upload.promoted_at + timedelta(seconds=schedule.keep_for_seconds)


class ScheduleStore:
    """Schedules in PostgreSQL, beside the log."""

    def __init__(
        self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms, decisions: Decisions
    ) -> None:
        self._pool = pool
        self._log = log
        self._rows = SignedTable(
            "retentions", key=("tenant", "dataset"), row=Schedule, authority=authority, alarms=alarms
        )
        self._alarms = alarms
        self._decisions = decisions
        self._uploads = UploadRows(authority=authority, alarms=alarms)

    async def set(self, schedule: Schedule, *, by: Mapping[str, object]) -> int:
        """Sets a schedule in place of the one before, and logs it; gives the entry's index.

        Repeated, it logs nothing, and writes the row again: that mends one that somebody changed.

        Raises:
            StoredDataUnreadable: the log's entries are not those of its head.
        """
        await self._decisions.catch_up()
        async with transaction(self._pool) as connection:
            before, _ = (await self._decisions.under_lock(connection)).of(schedule.tenant, schedule.dataset)
            if before is None or not before.keeps_as(schedule):
                body = {
                    "dataset": schedule.dataset,
                    "keep_for_seconds": schedule.keep_for_seconds,
                    "keep_versions": schedule.keep_versions,
                    "tenant": schedule.tenant,
                }
                index = await self._log.append(connection, "retention", body | dict(by), by="datasets")
            else:
                index = before.log_index
            row = Schedule(
                tenant=schedule.tenant,
                dataset=schedule.dataset,
                keep_versions=schedule.keep_versions,
                keep_for_seconds=schedule.keep_for_seconds,
                log_index=index,
            )
            await self._rows.put(connection, row)
            return index

    async def current(self) -> list[Schedule]:
        """The last schedule of each dataset, by the log. A row that is another one, or is not there, alarms.

        Raises:
            StoredDataUnreadable: the log's entries are not those of its head.
        """
        async with self._decisions.snapshot() as (connection, decided):
            rows = await self._rows.readable(connection, "ORDER BY tenant, dataset")
        stored = {(row.tenant, row.dataset): row for row in rows}
        for dataset in sorted(decided.schedules.keys() | stored.keys()):
            with suppress(StoredDataUnreadable), self._alarms.on_authority():  # sounded; the log's is carried out
                if stored.get(dataset) != decided.schedules.get(dataset):
                    raise StoredDataUnreadable(f"the schedule of {'/'.join(dataset)} is not the one that the log has")
        return [decided.schedules[dataset] for dataset in sorted(decided.schedules)]

    async def write_again(self) -> int:
        """Makes the rows those that the log has, where they differ: after a restore they are older. How many differed.

        Raises:
            StoredDataUnreadable: the log's entries are not those of its head.
        """
        await self._decisions.catch_up()
        async with transaction(self._pool) as connection:
            said = (await self._decisions.under_lock(connection)).schedules
            stored = {(row.tenant, row.dataset): row for row in await self._rows.readable(connection, "")}
            differ = [schedule for dataset, schedule in said.items() if stored.get(dataset) != schedule]
            for schedule in differ:
                await self._rows.put(connection, schedule)
        return len(differ)

    async def versions(self, tenant: str, dataset: str) -> list[Upload]:
        """The readable versions of a dataset, newest first. Rows that do not verify alarm and are left out."""
        async with connected(self._pool) as connection:
            return self._uploads.readable(await connection.fetch(_READABLE, tenant, dataset))

    async def now(self) -> datetime:
        """What the database's clock says."""
        async with connected(self._pool) as connection:
            return datetime.fromisoformat(await connection.fetchval("SELECT clock_timestamp()::text"))
