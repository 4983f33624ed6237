"""A table whose rows each carry a MAC over table, key and all columns.

If this fails: whoever may write to the database moves labels, invents models or
has versions shredded.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Generic, TypeVar

from casemate.errors import StoredDataUnreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection
    from services.datasets.alarms import Alarms

Row = TypeVar("Row")
"""A frozen dataclass whose fields are the columns, `mac` left out."""


class SignedTable(Generic[Row]):
    """Reads and writes rows of one table, under the connections of the callers.

    Args:
        table: its name.
        key: its primary key's columns, the first fields of `row`.
        row: what a row is.
        authority: makes the MACs.
        alarms: told of a row that does not verify.
    """

    def __init__(
        self, table: str, *, key: Sequence[str], row: type[Row], authority: AuthorityKey, alarms: Alarms
    ) -> None:
        self._table = table
        self._row = row
        self._key = tuple(key)
        self._authority = authority
        self._alarms = alarms
        self._names = tuple(field.name for field in fields(row))  # type: ignore[arg-type]  # a dataclass, see `Row`
        columns = ", ".join(self._names)
        places = ", ".join(f"${number}" for number in range(1, len(self._names) + 2))
        changed = ", ".join(f"{name} = EXCLUDED.{name}" for name in (*self._names[len(self._key) :], "mac"))
        self._where = " AND ".join(f"{name} = ${number}" for number, name in enumerate(self._key, 1))
        # Built from names of our own dataclasses alone; every value is a parameter.
        self._select = f"SELECT {columns}, mac FROM {table} "  # noqa: S608
        self._put = (
            f"INSERT INTO {table} ({columns}, mac) VALUES ({places}) "  # noqa: S608
            f"ON CONFLICT ({', '.join(self._key)}) DO UPDATE SET {changed}"
        )
        self._delete = f"DELETE FROM {table} WHERE {self._where}"  # noqa: S608

    async def put(self, connection: Connection, row: Row) -> None:
        """Adds a row, or replaces the one of its key."""
        values = asdict(row)  # type: ignore[call-overload]  # as above
        mac = self._authority.mac(self._table, self._name(values), values)
        await connection.execute(self._put, *values.values(), mac)

    async def delete(self, connection: Connection, *key: object) -> None:
        """Removes the row of a key."""
        await connection.execute(self._delete, *key)

    async def get(self, connection: Connection, *key: object, lock: bool = False) -> Row | None:
        """The row of a key, if there is one.

        Raises:
            StoredDataUnreadable: it does not verify; that alarms.
        """
        found = await self.select(connection, f"WHERE {self._where}" + (" FOR UPDATE" if lock else ""), *key)
        return found[0] if found else None

    async def select(self, connection: Connection, rest: str, *values: object) -> list[Row]:
        """The rows that `rest` (WHERE …, ours and constant) finds.

        Raises:
            StoredDataUnreadable: one does not verify; that alarms. None is left out in silence.
        """
        return [self._verified(record) for record in await connection.fetch(self._select + rest, *values)]

    async def readable(self, connection: Connection, rest: str, *values: object) -> list[Row]:
        """Those of the rows that verify; the others alarm. For rows of which each stands for itself alone."""
        found = []
        for record in await connection.fetch(self._select + rest, *values):
            try:
                found.append(self._verified(record))
            except StoredDataUnreadable:  # refused by being left out; the alarm has sounded
                continue
        return found

    def _verified(self, record: asyncpg.Record) -> Row:
        values = {name: record[name] for name in self._names}
        with self._alarms.on_authority():
            self._authority.verify(self._table, self._name(values), values, record["mac"])
        return self._row(**values)

    def _name(self, values: dict[str, object]) -> str:
        return "\x00".join(str(values[name]) for name in self._key)
