"""Rows about shredded versions; all SQL about them is here, under the connections of the callers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from casemate.errors import StoredDataUnreadable

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from casemate.sealing.authority_rows import AuthorityKey, Canonical
    from casemate.storage.pool import Connection
    from services.datasets.alarms import Alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class Shredding:
    """One version that was shredded.

    Attributes:
        upload: its promoted attempt.
        log_index: the log's entry about it.
        shredded_at: when it ceased to be readable.
        key_deleted_at: when its key was deleted, or was found deleted; None before.
        no_backup_after: from then on no backup holds the key; None before.
    """

    upload: UUID
    log_index: int
    shredded_at: datetime
    key_deleted_at: datetime | None = None
    no_backup_after: datetime | None = None

    def finished(self, *, at: datetime, no_backup_after: datetime) -> Shredding:
        """The shredding once the key is gone."""
        return replace(self, key_deleted_at=at, no_backup_after=no_backup_after)


_NAMES = tuple(field.name for field in fields(Shredding))
_SELECT = f"SELECT {', '.join(_NAMES)}, mac FROM shreddings"  # noqa: S608  # names of our own dataclass


class ShreddingTable:
    """Reads and writes the rows, each under its MAC."""

    def __init__(self, *, authority: AuthorityKey, alarms: Alarms) -> None:
        self._authority = authority
        self._alarms = alarms

    async def insert(self, connection: Connection, shredding: Shredding) -> None:
        """Adds a row, in the transaction that shreds."""
        await connection.execute(
            "INSERT INTO shreddings (upload, log_index, shredded_at, key_deleted_at, no_backup_after, mac) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            *asdict(shredding).values(),
            self._mac(shredding),
        )

    async def finish(self, connection: Connection, shredding: Shredding) -> None:
        """Notes that the key is gone; whoever was first stays."""
        await connection.execute(
            "UPDATE shreddings SET key_deleted_at = $2, no_backup_after = $3, mac = $4 "
            "WHERE upload = $1 AND key_deleted_at IS NULL",
            *(shredding.upload, shredding.key_deleted_at, shredding.no_backup_after, self._mac(shredding)),
        )

    async def get(self, connection: Connection, upload: UUID) -> Shredding:
        """The row about an upload.

        Raises:
            StoredDataUnreadable: it is gone, or does not verify.
        """
        record = await connection.fetchrow(_SELECT + " WHERE upload = $1", upload)
        if record is None:
            raise StoredDataUnreadable(f"nothing tells how upload {upload} was shredded")
        return self._verified(record)

    async def news(self, connection: Connection, *, after: int) -> list[Shredding]:
        """Those that are later in the log, and all that are not finished, in order. None that does not verify."""
        records = await connection.fetch(
            _SELECT + " WHERE log_index > $1 OR key_deleted_at IS NULL ORDER BY log_index", after
        )
        found = []
        for record in records:
            try:
                found.append(self._verified(record))
            except StoredDataUnreadable:  # the alarm has sounded; by an INSERT alone nothing is shredded
                continue
        return found

    def _mac(self, shredding: Shredding) -> bytes:
        return self._authority.mac("shreddings", str(shredding.upload), _columns(shredding))

    def _verified(self, record: asyncpg.Record) -> Shredding:
        shredding = Shredding(**{name: record[name] for name in _NAMES})
        with self._alarms.on_authority():
            self._authority.verify("shreddings", str(shredding.upload), _columns(shredding), record["mac"])
        return shredding


def _columns(shredding: Shredding) -> dict[str, Canonical]:
    columns: dict[str, Canonical] = asdict(shredding)
    del columns["upload"]
    return columns
