"""What was last decided of datasets: how long versions are kept, and what labels name. The log is the authority.

Rows of schedules and labels can be taken away, and older ones put back, by whoever writes
to the database. The log's head carries a MAC, and every entry is proven under it before
it counts. The log is read once, and then what is new, which must continue what was
read: a log that is put back under a running service is refused too.

Not seen here: the whole database put back as it once was while the service was down. The
witness, and whoever kept a checkpoint, sees that.

If this fails: a version that a label names is shredded, or one is kept that was to go.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from services.datasets.database import transaction
from services.datasets.log import LogHead
from services.datasets.schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from casemate.storage.pool import Connection, Pool
    from services.datasets.log_store import LogStore

Dataset: TypeAlias = tuple[str, str]
"""Tenant and name."""

_KINDS: Final = (b'"kind":"label"', b'"kind":"retention"')
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Decided:
    """What the log says.

    Attributes:
        schedules: the last one of each dataset.
        labels: what each label of a dataset names.
    """

    schedules: Mapping[Dataset, Schedule]
    labels: Mapping[Dataset, Mapping[str, int]]

    def of(self, tenant: str, dataset: str) -> tuple[Schedule | None, Mapping[str, int]]:
        """Schedule and labels of a dataset."""
        return self.schedules.get((tenant, dataset)), self.labels.get((tenant, dataset), _NONE)


class Decisions:
    """Follows the log. Memory: the schedules and labels that there are.

    Args:
        pool: the database.
        log: the log.
    """

    def __init__(self, *, pool: Pool, log: LogStore) -> None:
        self._pool = pool
        self._log = log
        self._reading = asyncio.Lock()
        self._known = LogHead(), Decided({}, {})

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[tuple[Connection, Decided]]:
        """A transaction that sees one state, and what the log says in it.

        Raises:
            StoredDataUnreadable: the log's entries are not those of its head, or do not continue what was read.
        """
        # One at a time, so that what is new is read once; whoever waits holds no connection.
        async with self._reading:
            # Before the snapshot is taken: it might not have what is known afterwards.
            known = self._known
            async with transaction(self._pool, isolation="repeatable_read") as connection:
                yield connection, await self._read(connection, known)

    async def catch_up(self) -> None:
        """Reads what is new, so that little is left to read while `under_lock` holds off others."""
        async with self.snapshot():
            pass

    async def under_lock(self, connection: Connection) -> Decided:
        """What the log says, and goes on saying until the caller's transaction ends.

        Raises:
            StoredDataUnreadable: as by `snapshot`.
        """
        await self._log.lock(connection)
        # Waits for no snapshot: that would wait for a connection, and all of them for this lock.
        return await self._read(connection, self._known)

    async def _read(self, connection: Connection, known: tuple[LogHead, Decided]) -> Decided:
        head = await self._log.head_of(connection)
        seen, decided = known
        if head == seen:
            return decided
        schedules, labels = dict(decided.schedules), dict(decided.labels)
        async for index, entry in self._log.scan(connection, after=seen):
            if not any(kind in entry for kind in _KINDS):
                continue
            said = json.loads(entry)
            if said["by"] == "datasets" and said["kind"] == "retention":
                schedule = _schedule(said["body"], index)
                schedules[schedule.tenant, schedule.dataset] = schedule
            elif said["by"] == "datasets" and said["kind"] == "label":
                dataset = said["body"]["tenant"], said["body"]["dataset"]
                labels[dataset] = _moved(labels.get(dataset, _NONE), said["body"])
        decided = Decided(schedules, labels)
        if head.size > self._known[0].size:  # others read meanwhile: what is known never goes back
            self._known = head, decided
        return decided


def _schedule(body: Mapping[str, Any], index: int) -> Schedule:
    return Schedule(
        tenant=body["tenant"],
        dataset=body["dataset"],
        keep_versions=body["keep_versions"],
        keep_for_seconds=body["keep_for_seconds"],
        log_index=index,
    )


def _moved(labels: Mapping[str, int], body: Mapping[str, Any]) -> Mapping[str, int]:
    others = {label: version for label, version in labels.items() if label != body["label"]}
    return others | {body["label"]: body["version"]} if body["version"] else others
