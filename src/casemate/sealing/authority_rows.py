"""Rows that decide who may do what, each with a MAC that only the service can make.

Whoever can write to the database, its superuser included, can then neither add a
grant nor change one: a row without a good MAC is refused. Putting back an old row
with its old MAC, or deleting one, is not seen here; the transparency log shows it.

If this fails: an INSERT grants rights. The caller still needs a certificate of a
tenant, and a token that is bound to it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.encoding import length_prefixed
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.private_files import read_private, rewrite_file, write_file
from casemate.sealing.rewrapping import StoredWrap

Canonical: TypeAlias = bool | int | str | bytes | datetime | tuple[str, ...] | None
"""What a column may hold. A datetime is aware; a list from the database becomes a tuple first."""

_LABEL: Final = b"casemate/authority-row@v1\x00"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CONTEXT: Final = KeyContext(purpose="authority-rows", tenant="", name="authority", version=1)
_WHAT: Final = "the wrapped key of the authority rows"
_SEAL: Final = object()
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRow:
    """A row whose MAC is good. Only `AuthorityKey.verify` makes one.

    Attributes:
        table: the table it is of.
        primary_key: its primary key.
        columns: all of its columns, read-only.
    """

    table: str
    primary_key: str
    columns: Mapping[str, Canonical]
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a VerifiedRow comes from AuthorityKey.verify")


class AuthorityKey:
    """The key of one service's authority rows. Made by `load_or_create`, or from a data key in hand."""

    __slots__ = ("_keyed",)

    def __init__(self, key: DataKey) -> None:
        # Copied for each row: to key it anew, OpenSSL looks the algorithm up by name, which costs more than a row.
        self._keyed = hmac.new(key.reveal(), digestmod="sha256")

    @classmethod
    async def load_or_create(cls, kek: KeyEncryptionKey, path: Path, *, create: bool = True) -> AuthorityKey:
        """The key that lies wrapped in `path`; a new one when nothing lies there and there is nothing to verify yet.

        Args:
            kek: wraps and unwraps it.
            path: its file.
            create: whether this may be the first use. Where rows exist already, a new key
                would verify none of them, and would stand in the way of restoring the old one.

        Raises:
            ConfigurationError: the file is gone, readable by others or cannot be written.
            StoredDataUnreadable: it does not unwrap under this key-encryption key.
            Unavailable: the key-encryption key cannot be reached.
        """
        if not await asyncio.to_thread(path.exists):
            if not create:
                raise ConfigurationError(f"{path} is gone, and rows of authority are verified by it alone: restore it")
            key, wrapped = await kek.generate_data_key(_CONTEXT)
            try:
                await asyncio.to_thread(write_file, path, wrapped.to_bytes(), replace=False)
            except ConfigurationError:
                # Another process was first: its key is the one.
                if not await asyncio.to_thread(path.exists):
                    raise
            else:
                return cls(key)
        stored = await asyncio.to_thread(read_private, path, what=_WHAT, group_may_read=True)
        return cls(await kek.unwrap(WrappedKey.parse(stored), _CONTEXT))

    def mac(self, table: str, primary_key: str, columns: Mapping[str, Canonical]) -> bytes:
        """32 bytes (HMAC-SHA256) over the table, the primary key and every column by name.

        Raises:
            TypeError: a column holds something else than `Canonical`.
            ValueError: a datetime is naive.
        """
        keyed = self._keyed.copy()
        keyed.update(_encode_row(table, primary_key, columns))
        return keyed.digest()

    def begin_mac(self, table: str, primary_key: str, column: str, *, length: int) -> Callable[[bytes], bytes]:
        """What makes the MACs of rows with one column, of so many bytes: as `mac`, with all before them hashed once.

        Its results are for columns of that length alone.
        """
        begun = self._keyed.copy()
        encoded = _encode_row(table, primary_key, {column: bytes(length)})
        begun.update(encoded[: len(encoded) - length])

        def finish(value: bytes) -> bytes:
            if len(value) != length:
                raise ValueError("a column of another length")
            keyed = begun.copy()
            keyed.update(value)
            return keyed.digest()

        return finish

    def verify(self, table: str, primary_key: str, columns: Mapping[str, Canonical], mac: bytes | None) -> VerifiedRow:
        """The row, proven to be as this service wrote it.

        Args:
            table: the table it was read from.
            primary_key: its primary key.
            columns: every column but the MAC.
            mac: what the row holds as its MAC.

        Raises:
            StoredDataUnreadable: the MAC is missing or is not this row's.
        """
        try:
            genuine = mac is not None and hmac.compare_digest(self.mac(table, primary_key, columns), mac)
        except (TypeError, ValueError):  # what no row of ours ever held: an infinite timestamp has no zone
            genuine = False
        if not genuine:
            raise StoredDataUnreadable(f"row {primary_key!r} of {table} was not written by this service")
        return VerifiedRow(table=table, primary_key=primary_key, columns=MappingProxyType(dict(columns)), seal=_SEAL)


class AuthorityKeyFile:
    """The file of the wrapped key, for rewrapping. Implements `rewrapping.WrapStore`.

    Where the file is mounted for reading alone, as an orchestrator mounts its secrets, it stays as
    it is, and the log says so: an operator replaces what it is mounted from. Until then it
    opens under the old version, which is kept.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    async def count(self) -> int:
        """See `rewrapping.WrapStore`."""
        return 1

    async def pages(self) -> AsyncIterator[Sequence[StoredWrap]]:
        """See `rewrapping.WrapStore`."""
        yield [StoredWrap(identifier=str(self._path), context=_CONTEXT, stored=await self._read())]

    async def replace(self, changes: Sequence[tuple[StoredWrap, bytes]]) -> int:
        """See `rewrapping.WrapStore`. The key inside never changes, so of two writers either may win."""
        for wrap, new in changes:
            if await self._read() != wrap.stored:
                continue
            try:
                await asyncio.to_thread(rewrite_file, self._path, new)
            except ConfigurationError as error:
                _LOGGER.warning("%s: it stays under its old version until its Secret is replaced", error)
                continue
            return 1
        return 0

    async def rewrapped(self, kek: KeyEncryptionKey) -> bytes:
        """What is to lie in the file, under the current version; nothing is written.

        Raises:
            ConfigurationError, StoredDataUnreadable, Unavailable: as `AuthorityKey.load_or_create`.
        """
        return (await kek.rewrap(WrappedKey.parse(await self._read()), _CONTEXT)).to_bytes()

    async def _read(self) -> bytes:
        return await asyncio.to_thread(read_private, self._path, what=_WHAT, group_may_read=True)


def _encode_row(table: str, primary_key: str, columns: Mapping[str, Canonical]) -> bytes:
    fields = [table.encode(), primary_key.encode(), struct.pack(">I", len(columns))]
    for name in sorted(columns):
        fields += (name.encode(), _encode_value(name, columns[name]))
    return _LABEL + length_prefixed(*fields)


def _encode_value(name: str, value: Canonical) -> bytes:  # noqa: PLR0911  # one per type
    """A one-byte type before the value: 1, True, "1" and b"1" are four different things."""
    match value:
        case None:
            return b"n"
        case bool():  # before int, whose subclass it is
            return b"t" if value else b"f"
        case int():
            return b"i%d" % value
        case str():
            return b"s" + value.encode()
        case bytes():
            return b"b" + value
        case datetime():
            if value.tzinfo is None:
                raise ValueError(f"column {name} holds a datetime without a zone")
            # The instant, to the microsecond that the database keeps, in whatever zone it was said.
            return b"d%d" % ((value - _EPOCH) // _MICROSECOND)
        case tuple():
            return b"l" + length_prefixed(*(part.encode() for part in value))
        case _:
            raise TypeError(f"column {name} holds a {type(value).__name__}, which has no canonical form")
