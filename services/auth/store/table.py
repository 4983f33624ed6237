"""One authority table: records in, records out, and a MAC in between.

Every read of an authority row goes through `AuthorityTable`, which verifies the
row's MAC before a record exists. What the MAC does not see is a row put back
whole as it once was, or a row that is gone: those are found by the transparency
log, not here.

If this fails: whoever writes to the database decides who is trusted. The CA of
the certificates and the signers' own private keys still hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from casemate.errors import AlreadyExists, CasemateError, StoredDataUnreadable
from casemate.sealing.authority_rows import AuthorityKey, Canonical

if TYPE_CHECKING:
    from asyncpg import Record

    from casemate.storage.pool import Connection

R = TypeVar("R")

_FILLER = "-" * 32
"""About as long as what columns hold."""
_AT_ONCE = 128
"""Rows that are verified without letting others go on: a few milliseconds' worth."""

_log = logging.getLogger(__name__)


class Alarms:
    """Counts and logs rows of the authority that are not as the application wrote them."""

    def __init__(self, *, count: Callable[[], None]) -> None:
        self._count = count

    def sound(self, finding: str, *, table: str, key: str) -> None:
        """Tells of one row. Someone has to look: this does not happen by itself."""
        self._count()
        _log.critical("authority alarm: %s: table=%s key=%s", finding, table, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[R]):
    """A part of a table, in the order of its keys.

    Attributes:
        records: those that verify.
        after: the key that the next page begins after; None if there is none.
    """

    records: tuple[R, ...]
    after: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(Generic[R]):
    """How one kind of record lies in its table.

    The names are constants of this package; statements are built from them once.
    Values travel as parameters only. `later` holds columns that a migration added and
    their defaults: at its default such a column is left out of the MAC, so that rows from
    before it still verify. A row's MAC counts its columns, so none can be left out unseen.
    """

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    to_columns: Callable[[R], tuple[Canonical, ...]]
    from_columns: Callable[[Mapping[str, Any]], R]
    later: Mapping[str, Canonical] = field(default_factory=lambda: MappingProxyType({}))


class AuthorityTable(Generic[R]):
    """Reads and writes the authority rows of one table."""

    def __init__(self, layout: Layout[R], *, key: AuthorityKey, alarms: Alarms) -> None:
        self._layout = layout
        self._later = layout.later
        self._key = key
        self._alarms = alarms
        names = ", ".join((*layout.columns, "mac"))
        places = ", ".join(f"${n}" for n in range(1, len(layout.columns) + 2))
        offset = len(layout.columns) + 1
        own = " AND ".join(f"{name} = ${n}" for n, name in enumerate(layout.key, start=1))
        own_after = " AND ".join(f"{name} = ${n + offset}" for n, name in enumerate(layout.key, start=1))
        self._select = f"SELECT {names} FROM {layout.table}"  # noqa: S608  # names are this package's constants
        self._order = f" ORDER BY {', '.join(layout.key)}"
        self._after = f"({', '.join(layout.key)}) > ({', '.join(f'${n}' for n, _ in enumerate(layout.key, start=1))})"
        self._by_key = f"{self._select} WHERE {own}"
        self._insert = f"INSERT INTO {layout.table} ({names}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING 1"  # noqa: S608  # as above
        self._replace = f"UPDATE {layout.table} SET ({names}) = ROW ({places}) WHERE {own_after}"  # noqa: S608  # as above
        self._swap = f"{self._replace} AND mac = ${offset + len(layout.key) + 1} RETURNING 1"
        self._delete = f"DELETE FROM {layout.table} WHERE {own} RETURNING 1"  # noqa: S608  # as above

    async def insert(self, connection: Connection, record: R) -> None:
        """Adds a record.

        Raises:
            AlreadyExists: something that must be unique is taken.
        """
        values = self._layout.to_columns(record)
        if await connection.fetchval(self._insert, *values, self._mac(values)) is None:
            raise AlreadyExists(f"{self._layout.table}: taken")

    async def replace(self, connection: Connection, record: R) -> None:
        """Writes a record over the one that has its key."""
        values = self._layout.to_columns(record)
        named = dict(zip(self._layout.columns, values, strict=True))
        await connection.execute(self._replace, *values, self._mac(values), *(named[name] for name in self._layout.key))

    async def swap(self, connection: Connection, before: R, after: R) -> bool:
        """Writes a record over the very one that was read; tells whether it still was there.

        One statement. The MAC covers every column, so comparing it compares them all.
        """
        old, new = self._layout.to_columns(before), self._layout.to_columns(after)
        named = dict(zip(self._layout.columns, old, strict=True))
        key = (named[name] for name in self._layout.key)
        return await connection.fetchval(self._swap, *new, self._mac(new), *key, self._mac(old)) is not None

    async def delete(self, connection: Connection, *key: str | int) -> bool:
        """Removes the record with this key; tells whether there was one."""
        return await connection.fetchval(self._delete, *key) is not None

    async def get(self, connection: Connection, *key: str | int) -> R | None:
        """The record with this key.

        Raises:
            StoredDataUnreadable: the row is there and its MAC does not verify.
        """
        row = await connection.fetchrow(self._by_key, *key)
        return None if row is None else self._read(row)

    async def matching(
        self, connection: Connection, *, lock: bool = False, as_many_as: int = 0, **equal: str
    ) -> list[R]:
        """All records whose columns have these values. A row that does not verify is as if absent.

        With `lock`, nobody else changes them before the transaction ends. With `as_many_as`, fewer rows cost
        as much as so many, so that nobody learns by time whether there are any.
        """
        if not equal.keys() <= set(self._layout.columns):
            raise ValueError(f"{self._layout.table} has no such columns")
        condition = " AND ".join(f"{name} = ${n}" for n, name in enumerate(equal, start=1))
        suffix = f"{self._order} FOR UPDATE" if lock else self._order
        rows = await connection.fetch(f"{self._select} WHERE {condition}{suffix}", *equal.values())
        self.spend(as_many_as - len(rows))
        return self._readable(rows)

    def spend(self, rows: int) -> None:
        """Does the work of verifying so many rows, for nothing."""
        for _ in range(rows):
            self._key.mac(self._layout.table, "", dict.fromkeys(self._layout.columns, _FILLER))

    async def page(self, connection: Connection, *, after: tuple[str, ...] | None, limit: int, **equal: str) -> Page[R]:
        """At most `limit` records whose columns have these values, by key, after a key.

        A row that does not verify is as if absent, and takes its place on the page all the same. Lets others
        go on in between.
        """
        key = self._layout.key
        if not equal.keys() <= set(self._layout.columns) or (after is not None and len(after) != len(key)):
            raise ValueError(f"{self._layout.table} has no such columns")
        conditions = [] if after is None else [self._after]
        given = list(after or ())
        conditions += [f"{name} = ${n}" for n, name in enumerate(equal, start=len(given) + 1)]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        # One more than asked for tells whether there is another page.
        rows = await connection.fetch(
            f"{self._select}{where}{self._order} LIMIT {limit + 1:d}", *given, *equal.values()
        )
        last = tuple(str(rows[limit - 1][name]) for name in key) if len(rows) > limit else None
        return Page(records=tuple(await self._readable_in_turns(rows[:limit])), after=last)

    async def all(self, connection: Connection) -> list[R]:
        """All records, by key. A row that does not verify is as if absent. Lets others go on in between."""
        return await self._readable_in_turns(await connection.fetch(self._select + self._order))

    async def _readable_in_turns(self, rows: Sequence[Record]) -> list[R]:
        found: list[R] = []
        for start in range(0, len(rows), _AT_ONCE):
            found += self._readable(rows[start : start + _AT_ONCE])
            await asyncio.sleep(0)
        return found

    def _readable(self, rows: Iterable[Record]) -> list[R]:
        found = []
        for row in rows:
            try:
                found.append(self._read(row))
            except StoredDataUnreadable:
                continue  # counted and logged where it was found; the rest of the table is still good
        return found

    def _read(self, row: Record) -> R:
        columns = {name: _canonical(row[name]) for name in self._layout.columns}
        identity = self._identity(columns)
        try:
            self._key.verify(self._layout.table, identity, self._signed(columns), row["mac"])
            return self._layout.from_columns(columns)
        except (CasemateError, TypeError, ValueError) as error:
            # Also what has no canonical form, such as a moment at infinity: only SQL writes that.
            self._alarms.sound("a row does not verify", table=self._layout.table, key=identity)
            raise StoredDataUnreadable(f"row {identity!r} of {self._layout.table}") from error

    def _mac(self, values: tuple[Canonical, ...]) -> bytes:
        columns = dict(zip(self._layout.columns, values, strict=True))
        return self._key.mac(self._layout.table, self._identity(columns), self._signed(columns))

    def _signed(self, columns: Mapping[str, Canonical]) -> Mapping[str, Canonical]:
        if not self._later:
            return columns
        return {name: value for name, value in columns.items() if name not in self._later or value != self._later[name]}

    def _identity(self, columns: Mapping[str, Canonical]) -> str:
        # The key's columns are also among the columns, so a separator inside a value could not confuse two rows.
        return "/".join(str(columns[name]) for name in self._layout.key)


def _canonical(value: Any) -> Canonical:  # noqa: ANN401  # whatever the driver returns
    return tuple(value) if isinstance(value, list) else value
