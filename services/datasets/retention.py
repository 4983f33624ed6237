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
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, Conflict, InvalidRequest, NotFound, StoredDataUnreadable
from services.datasets.schedules import versions_beyond

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import datetime
    from uuid import UUID

    from casemate.clock import Clock
    from casemate.storage.pool import Connection
    from services.datasets.decisions import Decisions
    from services.datasets.discards import DiscardStore
    from services.datasets.labels import LabelStore
    from services.datasets.schedules import Schedule, ScheduleStore, Surplus
    from services.datasets.shred import Shredder
    from services.datasets.upload import Upload

LOOK_EVERY: Final = timedelta(minutes=1)
CLOCKS_AGREE_WITHIN: Final = timedelta(minutes=5)
_REMEMBERED: Final = 10_000
_NOTHING: Final[frozenset[int]] = frozenset()
_LOGGER = logging.getLogger(__name__)


class Retention:
    """Carries schedules out, in every replica: whatever two do at once, they do once.

    Args:
        schedules: what is kept.
        surplus: when a version is one too many.
        decisions: schedules and labels as the log has them.
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
        surplus: Surplus,
        decisions: Decisions,
        discards: DiscardStore,
        labels: LabelStore,
        shredder: Shredder,
        upload_lifetime: timedelta,
        clock: Clock,
        clocks_agree_within: timedelta = CLOCKS_AGREE_WITHIN,
    ) -> None:
        self._schedules = schedules
        self._surplus = surplus
        self._decisions = decisions
        self._discards = discards
        self._labels = labels
        self._shredder = shredder
        self._upload_lifetime = upload_lifetime
        self._clock = clock
        self._agree_within = clocks_agree_within
        self._ends: dict[UUID, datetime] = {}

    async def run(self) -> None:
        """Compares the schedules with the log at once, then looks every minute, for ever."""
        await _tried(self._schedules.current)
        while True:
            await asyncio.sleep(LOOK_EVERY.total_seconds())
            await _tried(self.look)

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
        for schedule in await self._schedules.current():
            try:
                due, labels = await self._due(schedule, now)
            except StoredDataUnreadable:  # the alarm has sounded; its versions stay, and the next one stands by itself
                continue
            for upload in due:
                gone += await self._shred(upload, schedule, labels)
        return gone

    async def _due(self, schedule: Schedule, now: datetime) -> tuple[list[Upload], Mapping[str, int]]:
        """What is to go by a schedule, and by which labels, if those in the table are those that the log has."""
        versions = await self._schedules.versions(schedule.tenant, schedule.dataset)
        if not versions_beyond(schedule, versions, surplus=self._surplus, labelled=_NOTHING, now=now):
            return [], {}
        labels = await self._labels.proven(schedule.tenant, schedule.dataset)
        labelled = frozenset(labels.values())
        return versions_beyond(schedule, versions, surplus=self._surplus, labelled=labelled, now=now), labels

    async def _shred(self, upload: Upload, schedule: Schedule, labels: Mapping[str, int]) -> bool:
        async def judge(connection: Connection) -> None:
            decided = await self._decisions.under_lock(connection)
            if decided.of(upload.tenant, upload.dataset) != (schedule, labels):
                raise Conflict(f"what is kept of {upload.tenant}/{upload.dataset} was decided anew meanwhile")

        try:
            await self._shredder.shred(
                tenant=upload.tenant, dataset=upload.dataset, version=upload.version, judge=judge
            )
        # Another replica, or an operator, was first; or it is judged anew in a minute; or the alarm has sounded.
        except (NotFound, Conflict, StoredDataUnreadable):
            return False
        return True

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


async def _tried(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except CasemateError as error:
        _LOGGER.warning("retention was not carried out: %s", error)
