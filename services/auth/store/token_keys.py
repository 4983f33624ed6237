"""Token keys as their schedule changes them: judged again under the lock of all changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from casemate.storage.pool import storage_errors
from services.auth.key_schedule import KeySchedule, Step, Turn, next_step
from services.auth.records import TokenKey
from services.auth.store.changes import Change, EventKind, begin_change
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Pool


class TokenKeyStore:
    """Reads token keys and turns them."""

    def __init__(self, *, pool: Pool, tables: AuthorityTables) -> None:
        self._pool = pool
        self._tables = tables

    async def all(self) -> list[TokenKey]:
        """Every key whose row verifies, by `kid`."""
        with storage_errors():
            async with self._pool.acquire() as connection:
                return await self._tables.token_keys.all(connection)

    async def turn(self, step: Step, *, now: datetime, schedule: KeySchedule, prepared: TokenKey | None) -> bool:
        """Does a step if it is still the one that is due; tells whether it was. One transaction.

        Args:
            step: what was due when the caller looked.
            now: when it is judged again.
            schedule: by which.
            prepared: the new key, for `PREPARE`.
        """
        with storage_errors():
            async with self._pool.acquire() as connection, begin_change(connection) as change:
                keys = await self._tables.token_keys.all(change.connection)
                if next_step(keys, now=now, schedule=schedule) != step:
                    return False
                await self._do(change, step, {key.kid: key for key in keys}, now=now, prepared=prepared)
                return True

    async def _do(
        self, change: Change, step: Step, keys: dict[str, TokenKey], *, now: datetime, prepared: TokenKey | None
    ) -> None:
        table = self._tables.token_keys
        match step.turn:
            case Turn.PREPARE:
                if prepared is not None:
                    await table.insert(change.connection, prepared)
                return  # nobody is told before it is published
            case Turn.PUBLISH:
                await table.replace(change.connection, replace(keys[step.kid], state="published", changed_at=now))
            case Turn.ACTIVATE:
                await activate(self._tables, change, keys[step.kid], now=now)
            case Turn.RETIRE:
                # Its private half goes with the row.
                await table.delete(change.connection, step.kid)
        await change.tell(EventKind.TOKEN_KEY, step.kid)


async def activate(tables: AuthorityTables, change: Change, successor: TokenKey, *, now: datetime) -> None:
    """Has a published key sign, and whichever signed until now retire. Tells only of the latter."""
    for key in await tables.token_keys.matching(change.connection, state="active"):
        # First this one: the database takes no second active key.
        await tables.token_keys.replace(change.connection, replace(key, state="retiring", changed_at=now))
        await change.tell(EventKind.TOKEN_KEY, key.kid)
    await tables.token_keys.replace(change.connection, replace(successor, state="active", changed_at=now))
