"""Rows of `uploads`, each under its MAC: reading, writing, and what the log says of one.

If this fails: a row that the owner of the database made or changed would decide
what is readable.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from casemate.errors import StoredDataUnreadable
from services.datasets.upload import Upload, UploadState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import asyncpg

    from casemate.sealing.authority_rows import AuthorityKey, Canonical
    from casemate.storage.pool import Connection
    from services.datasets.alarms import Alarms

_NAMES: Final = tuple(field.name for field in fields(Upload))
_STATES: Final = frozenset(UploadState)
_COLUMNS: Final = ", ".join(_NAMES)
# Built from the names of our own dataclass alone; every value is a parameter.
SELECT: Final = f"SELECT {_COLUMNS}, mac FROM uploads"  # noqa: S608
_INSERT: Final = (
    f"INSERT INTO uploads ({_COLUMNS}, mac) "  # noqa: S608
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(_NAMES) + 2))}) "
    "ON CONFLICT (tenant, dataset, version, upload_id) DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE uploads SET state = $2, next_offset = $3, next_batch = $4, next_ordinal = $5, promoted_at = $6, "
    "log_index = $7, mac = $8 WHERE id = $1"
)
_VERSIONS: Final = "state IN ('promoted', 'shredded')"
LATEST: Final = SELECT + f" WHERE tenant = $1 AND dataset = $2 AND {_VERSIONS} ORDER BY version DESC LIMIT 1"
OLDER: Final = (
    SELECT + f" WHERE tenant = $1 AND dataset = $2 AND {_VERSIONS} AND version < $3 ORDER BY version DESC LIMIT $4"
)
# From name to name by the index: a dataset of many versions costs no more than one of few.
NEWEST_OF_EACH: Final = f"""
WITH RECURSIVE names (dataset) AS (
    (SELECT dataset FROM uploads WHERE tenant = $1 AND {_VERSIONS} AND dataset > $2 ORDER BY dataset LIMIT 1)
    UNION ALL
    SELECT following.dataset FROM names CROSS JOIN LATERAL (
        SELECT dataset FROM uploads WHERE tenant = $1 AND {_VERSIONS} AND dataset > names.dataset
        ORDER BY dataset LIMIT 1
    ) AS following
), wanted AS (SELECT dataset FROM names LIMIT $3)
SELECT newest.* FROM wanted CROSS JOIN LATERAL (
    {SELECT} WHERE tenant = $1 AND dataset = wanted.dataset AND {_VERSIONS} ORDER BY version DESC LIMIT 1
) AS newest ORDER BY newest.dataset
"""  # noqa: S608  # as above


class UploadRows:
    """The rows, under the connections of the callers."""

    def __init__(self, *, authority: AuthorityKey, alarms: Alarms) -> None:
        self._authority = authority
        self._alarms = alarms

    async def insert(self, connection: Connection, upload: Upload) -> bool:
        """Adds a row; whether it is the first of its upload id."""
        done: str = await connection.execute(_INSERT, *_values(upload).values(), self._mac(upload))
        return done == "INSERT 0 1"

    async def update(self, connection: Connection, upload: Upload) -> None:
        """Writes what may change of a row, with its new MAC."""
        await connection.execute(
            _UPDATE,
            *(upload.id, upload.state.value, upload.next_offset, upload.next_batch, upload.next_ordinal),
            *(upload.promoted_at, upload.log_index, self._mac(upload)),
        )

    async def one(self, connection: Connection, query: str, *values: object) -> Upload | None:
        """The row that a query by `SELECT` finds, if any.

        Raises:
            StoredDataUnreadable: it does not verify; that alarms.
        """
        record = await connection.fetchrow(query, *values)
        return None if record is None else self.verified(record)

    async def locked(self, connection: Connection, upload_id: UUID, *, at_once: bool = False) -> Upload:
        """The row of an upload, locked until the transaction ends; `at_once` waits for nobody who holds it.

        Raises:
            StoredDataUnreadable: it is gone, or does not verify.
            asyncpg.LockNotAvailableError: somebody held it for too long, or at all.
        """
        query = SELECT + " WHERE id = $1 FOR UPDATE" + (" NOWAIT" if at_once else "")
        upload = await self.one(connection, query, upload_id)
        if upload is None:
            raise StoredDataUnreadable(f"upload {upload_id} is gone")
        return upload

    def readable(self, records: Sequence[asyncpg.Record]) -> list[Upload]:
        """Those of the rows that verify; the others alarm."""
        found = []
        for record in records:
            try:
                found.append(self.verified(record))
            except StoredDataUnreadable:  # refused by being left out; the alarm has sounded
                continue
        return found

    def verified(self, record: asyncpg.Record) -> Upload:
        """The upload of a row.

        Raises:
            StoredDataUnreadable: its MAC is not over these values.
        """
        values = {name: record[name] for name in _NAMES}
        with self._alarms.on_authority():
            if values["state"] not in _STATES:
                raise StoredDataUnreadable(f"upload {values['id']} is in a state that there is not")
            upload = Upload(**(values | {"state": UploadState(values["state"])}))
            self._authority.verify("uploads", str(upload.id), _authority_columns(upload), record["mac"])
        return upload

    def _mac(self, upload: Upload) -> bytes:
        return self._authority.mac("uploads", str(upload.id), _authority_columns(upload))


def _values(upload: Upload) -> dict[str, object]:
    # Not `asdict`, which copies every value deeply: three times a chunk.
    return {name: getattr(upload, name) for name in _NAMES} | {"state": upload.state.value}


def _authority_columns(upload: Upload) -> dict[str, Canonical]:
    columns: dict[str, Canonical] = _values(upload) | {"data_key": str(upload.data_key)}  # type: ignore[assignment]  # the values of fields are of any type
    del columns["id"]
    return columns


def entry_body(upload: Upload) -> dict[str, object]:
    """What the log says of an upload: names and digests, never rows."""
    return {
        "dataset": upload.dataset,
        "manifest_sha256": upload.manifest_sha256.hex(),
        "root": upload.root.hex(),
        "rows": upload.row_count,
        "signer": upload.signer_key_id,
        "tenant": upload.tenant,
        "version": upload.version,
    }
