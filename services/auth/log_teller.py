"""Tells the transparency log of every change of the authority, in order, at least once.

The changes are those that the trust feed tells; a cursor says how far the log is
told. An entry holds the record as it is when it is told, so of two quick changes
the later one may be seen in both entries.

If this fails: changes of trust are in the audit alone, and the log lags. The lag
is counted, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.datasets.v1.log_service_pb2_grpc import LogServiceStub
from casemate.errors import CasemateError, StoredDataUnreadable
from casemate.storage.pool import storage_errors
from casemate.transport.status import from_rpc_error
from services.auth import log_entries
from services.auth.store.changes import EventKind
from services.auth.store.table import AuthorityTable, Layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.auth.store.table import Alarms
    from services.auth.store.tables import AuthorityTables

_LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"casemate.log-teller").digest()[:8], signed=True)
_TIMEOUT_SECONDS: Final = 5.0
_PAGE: Final = 64
"""Changes told in one transaction: as many are told again after a crash."""

_KINDS: Final = frozenset(kind.value for kind in EventKind)

_logger = logging.getLogger(__name__)


class LogAppender(Protocol):
    """Where entries go."""

    async def append(self, kind: str, body: bytes) -> int:
        """Appends; durable when it returns the index.

        Raises:
            CasemateError: it is not known to be appended.
        """


class DatasetsLog:
    """The log of the datasets service. Implements `LogAppender`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = LogServiceStub(channel)

    async def append(self, kind: str, body: bytes) -> int:
        """See `LogAppender`."""
        request = messages.AppendEntryRequest(kind=kind, body=body)
        try:
            answer = await asyncio.to_thread(self._stub.AppendEntry, request, timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return int(answer.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far the log is told."""

    name: str = "log"
    sequence: int = 0


CURSORS: Final[Layout[Cursor]] = Layout(
    table="log_cursor",
    key=("name",),
    columns=("name", "sequence"),
    to_columns=lambda cursor: (cursor.name, cursor.sequence),
    from_columns=lambda row: Cursor(**row),
)


def _readers(tables: AuthorityTables) -> dict[EventKind, tuple[Callable[..., Any], Callable[[Any], log_entries.Body]]]:
    """How the record of each kind of change is read, and what is said of it. A kind without one cannot be."""
    return {
        EventKind.GRANT: (tables.grants.get, log_entries.grant_body),
        EventKind.SIGNER: (tables.signers.get, log_entries.signer_body),
        EventKind.TOKEN_KEY: (tables.token_keys.get, log_entries.token_key_body),
        EventKind.REVOCATION: (tables.revocations.get, log_entries.revocation_body),
        EventKind.RELEASE: (tables.release, log_entries.release_body),
        EventKind.TENANT: (tables.tenants.get, log_entries.tenant_body),
        EventKind.CLIENT: (tables.clients.get, log_entries.client_body),
        EventKind.CLIENT_SECRET: (tables.client_secrets.get, log_entries.client_secret_body),
        EventKind.CLIENT_KEY: (tables.client_keys.get, log_entries.client_key_body),
        EventKind.ISSUER: (tables.external_issuers.get, log_entries.issuer_body),
        EventKind.EXCHANGE_GRANT: (tables.exchange_grants.get, log_entries.exchange_grant_body),
        EventKind.OPERATOR: (tables.operator_changes.get, log_entries.operator_body),
    }


class LogTeller:
    """Follows the changes.

    Args:
        pool: the authority's database.
        tables: reads records, verified.
        key: for the cursor's MAC.
        alarms: told of a cursor that does not verify.
        log: where entries go.
        lag: takes how many changes the log has not been told.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        tables: AuthorityTables,
        key: AuthorityKey,
        alarms: Alarms,
        log: LogAppender,
        lag: Callable[[float], None],
    ) -> None:
        self._pool = pool
        self._tables = tables
        self._cursors = AuthorityTable(CURSORS, key=key, alarms=alarms)
        self._log = log
        self._lag = lag
        self._readers = _readers(tables)

    async def run(self, every: timedelta) -> None:
        """Tells what there is, again and again. Runs until cancelled."""
        while True:
            try:
                while await self.tell():
                    pass
            except CasemateError as error:
                _logger.warning("the log was not told of changes: %s", error)
            await asyncio.sleep(every.total_seconds())

    async def tell(self) -> int:
        """Tells the next changes, and how many they were; none while another replica tells.

        Raises:
            CasemateError: the log or the database does not answer.
        """
        with storage_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK_KEY):
                    return 0
                return await self._tell(connection)

    async def _tell(self, connection: Connection) -> int:
        cursor = await self._cursors.get(connection, "log")
        after = 0 if cursor is None else cursor.sequence
        head = await connection.fetchval("SELECT sequence FROM trust_head")
        rows = await connection.fetch(
            "SELECT sequence, kind, record_key FROM trust_event WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            *(after, _PAGE),
        )
        self._lag(head - after)
        for row in rows:
            if row["sequence"] != after + 1:
                # Forgotten by now: too many at once for this log. The gap itself is told.
                gap = log_entries.entry_body(row["sequence"] - 1, (), {"first_untold": after + 1})
                await self._log.append("untold", gap)
            if row["kind"] not in _KINDS:
                # Written by a newer program, or by SQL. The newer one tells of it, and this one goes on after that.
                raise StoredDataUnreadable(f"an event of kind {row['kind']!r}")
            kind = EventKind(row["kind"])
            key = tuple(row["record_key"])
            body = log_entries.entry_body(row["sequence"], key, await self._body(connection, kind, key))
            await self._log.append(log_entries.KINDS[kind], body)
            after = row["sequence"]
        if rows:
            told = Cursor(sequence=after)
            if cursor is None:
                await self._cursors.insert(connection, told)
            else:
                await self._cursors.replace(connection, told)
            self._lag(head - after)
        return len(rows)

    async def _body(self, connection: Connection, kind: EventKind, key: tuple[str, ...]) -> log_entries.Body | None:
        read, body = self._readers[kind]
        try:
            record = await read(connection, *key)
        except StoredDataUnreadable:
            return None  # alarmed where it was found; nobody trusts it
        return None if record is None else body(record)
