"""What the trust feed tells, read from the primary in one consistent look.

An event says only which record changed; the record is read, and its MAC
verified, in the same snapshot of the database. A record that does not verify
is told as absent.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from casemate.clock import Clock
from casemate.errors import StoredDataUnreadable, Unavailable
from casemate.gate.core.records import RemovedGrant, RemovedSigner, RemovedTokenKey, TrustChange, VerificationKey
from casemate.gate.core.trust import TrustSnapshot
from casemate.storage.pool import storage_errors
from services.auth.records import VERIFYING, TokenKey
from services.auth.store.changes import KEY_PARTS, OWN, EventKind
from services.auth.store.table import AuthorityTable, R
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool

# Restoring a dump makes another database (oid); recovery to a point in time and failover begin
# another timeline; another cluster has another identifier. Each of them is another life.
_HEAD: Final = """
SELECT pg_is_in_recovery() AS is_standby,
       CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
       (SELECT system_identifier FROM pg_control_system())::text AS cluster,
       (SELECT oid FROM pg_database WHERE datname = current_database())::text AS database,
       epoch::text AS epoch,
       sequence
  FROM trust_head
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """All that is trusted, or what changed since a number, as of one read of the primary.

    Attributes:
        epoch: the life of the database that the number belongs to.
        sequence: everything up to this number is told.
        read_at: monotonic seconds just before the primary was read.
        snapshot: everything, if this is a beginning.
        since: otherwise, the number after which the changes are.
        changes: what changed, in order. May be empty although the number is a new one: a record
            that does not verify is not told, nor one that only this service acts on.
        clients: identifiers of the clients among those.
    """

    epoch: str
    sequence: int
    read_at: float
    snapshot: TrustSnapshot | None = None
    since: int = 0
    changes: tuple[TrustChange, ...] = ()
    clients: frozenset[str] = frozenset()

    @property
    def is_heartbeat(self) -> bool:
        """Whether nothing happened, so that the read itself is the news."""
        return self.snapshot is None and self.since == self.sequence


class NewsReader:
    """Reads snapshots and changes; each call is one read of the primary."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables, issuer: str, clock: Clock) -> None:
        self._pool = pool
        self._tables = tables
        self._issuer = issuer
        self._clock = clock

    async def read(self, *, epoch: str = "", sequence: int = 0, whole: bool = False) -> News:
        """What happened since a number of an epoch; everything, if that cannot be told or `whole` is asked for.

        Raises:
            Unavailable: the database does not answer, or it is not the primary.
        """
        read_at = self._clock.monotonic()
        with storage_errors():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                head = await connection.fetchrow(_HEAD)
                if head is None or head["is_standby"]:
                    raise Unavailable("the database is not a primary")
                present = _epoch(head)
                if not whole and epoch == present:
                    events = await self._events(connection, after=sequence, up_to=head["sequence"])
                    if events is not None:
                        changes = [await self._change(connection, kind, key) for kind, key in events]
                        return News(
                            epoch=present,
                            sequence=head["sequence"],
                            read_at=read_at,
                            since=sequence,
                            changes=tuple(change for change in changes if change is not None),
                            clients=frozenset(key[0] for kind, key in events if kind == EventKind.CLIENT),
                        )
                snapshot = await self._snapshot(connection, epoch=present, sequence=head["sequence"])
                return News(epoch=present, sequence=head["sequence"], read_at=read_at, snapshot=snapshot)

    async def forget_expired(self, before: datetime) -> None:
        """Deletes revocations and refresh families that ended before a moment; nothing of theirs is alive."""
        with storage_errors():
            await self._pool.execute("DELETE FROM revocation WHERE expires_at < $1", before)
            await self._pool.execute("DELETE FROM used_assertion WHERE expires_at < $1", before)
            await self._pool.execute(
                "DELETE FROM refresh_family WHERE idle_expires_at < $1 OR expires_at < $1 OR ended_at < $1", before
            )
            await self._pool.execute("DELETE FROM ended_family WHERE expires_at < $1", before)

    async def _events(
        self, connection: Connection, *, after: int, up_to: int
    ) -> list[tuple[str, tuple[str, ...]]] | None:
        """The records that changed, each once, in the order of their last change.

        None if numbers are missing, or an event is not one that the application writes.
        """
        rows = await connection.fetch(
            "SELECT kind, record_key FROM trust_event WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence",
            after,
            up_to,
        )
        if len(rows) != up_to - after:
            return None
        if any(KEY_PARTS.get(row["kind"]) != len(row["record_key"]) for row in rows):
            return None
        last: dict[tuple[str, tuple[str, ...]], None] = {}
        for row in rows:
            event = (row["kind"], tuple(row["record_key"]))
            last.pop(event, None)
            last[event] = None
        return list(last)

    async def _change(self, connection: Connection, kind: str, key: tuple[str, ...]) -> TrustChange | None:
        if EventKind(kind) in OWN:
            return None
        match EventKind(kind), key:
            case EventKind.TOKEN_KEY, (kid,):
                row = await _readable(self._tables.token_keys, connection, kid)
                return _verification_key(row) if row is not None and row.state in VERIFYING else RemovedTokenKey(kid)
            case EventKind.GRANT, (grant_id,):
                return await _readable(self._tables.grants, connection, grant_id) or RemovedGrant(grant_id)
            case EventKind.REVOCATION, (revocation_id,):
                return await _readable(self._tables.revocations, connection, revocation_id)
            case EventKind.SIGNER, (key_id,):
                return await _readable(self._tables.signers, connection, key_id) or RemovedSigner(key_id)
            case EventKind.RELEASE, (tenant, model):
                return await self._tables.release(connection, tenant, model)
            case _:
                raise StoredDataUnreadable(f"event of kind {kind} with {len(key)} parts of a key")

    async def _snapshot(self, connection: Connection, *, epoch: str, sequence: int) -> TrustSnapshot:
        tables = self._tables
        token_keys = await tables.token_keys.all(connection)
        now = self._clock.now()
        revocations = await tables.revocations.all(connection)
        grants = await tables.grants.all(connection)
        # In a thread: with very many records it takes a second, and calls must not wait for it.
        return await asyncio.to_thread(
            TrustSnapshot.build,
            epoch=epoch,
            sequence=sequence,
            issuer=self._issuer,
            keys=[_verification_key(row) for row in token_keys if row.state in VERIFYING],
            revocations=[row for row in revocations if row.expires_at is None or row.expires_at > now],
            grants=[row for row in grants if row.expires_at is None or row.expires_at > now],
            signers=await tables.signers.all(connection),
            releases=await tables.all_releases(connection),
        )


async def _readable(table: AuthorityTable[R], connection: Connection, key: str) -> R | None:
    try:
        return await table.get(connection, key)
    except StoredDataUnreadable:
        return None  # counted and logged where it was found


def _verification_key(row: TokenKey) -> VerificationKey:
    return VerificationKey.load(row.public_key, kid=row.kid, algorithm=row.algorithm)


def _epoch(head: Any) -> str:  # noqa: ANN401  # a record of the driver
    life = "/".join((head["cluster"], head["timeline"], head["database"], head["epoch"]))
    return hashlib.sha256(life.encode()).hexdigest()[:32]
