"""Makes a restored authority fit to be served from; run once, before any replica starts."""

from __future__ import annotations

from contextlib import AsyncExitStack

from casemate.backup.log_file import LogFile
from casemate.clock import Clock, SystemClock
from casemate.storage.pool import storage_errors
from casemate.transport.metrics import Metrics
from services.auth import token_keys
from services.auth.log_teller import CURSORS, Cursor
from services.auth.opening import open_authority
from services.auth.replay import LastEntries, Replay
from services.auth.settings import AuthSettings
from services.auth.store.changes import begin_change
from services.auth.store.table import AuthorityTable


async def after_restore(
    settings: AuthSettings, log: LogFile | None, *, clock: Clock | None = None
) -> dict[str, object]:
    """Takes away what the log says was taken away, and begins anew what has to; tells what it did. Repeatable.

    Args:
        settings: the service's own.
        log: the newest log; without one nothing is replayed.
        clock: time.

    Raises:
        ConfigurationError: a login, a file or a newer schema.
        StoredDataUnreadable: the log is not the one named, or the KEK is not the one of these rows.
    """
    clock = clock or SystemClock()
    last = LastEntries() if log is None else LastEntries.read(log.entries())
    async with AsyncExitStack() as stack:
        authority = await open_authority(settings, stack, Metrics("auth"))
        replay = Replay(tables=authority.tables, now=clock.now())
        key = await token_keys.generate(authority.kek, now=clock.now())
        cursors = AuthorityTable(CURSORS, key=authority.key, alarms=authority.alarms)
        with storage_errors():
            async with authority.pool.acquire() as connection, begin_change(connection) as change:
                # Before anything is told: what the log knows is not told to it twice under one number.
                cursor = await cursors.get(connection, "log")
                if cursor is None and last.sequence:
                    await cursors.insert(connection, Cursor(sequence=last.sequence))
                elif cursor is not None and cursor.sequence < last.sequence:
                    await cursors.replace(connection, Cursor(sequence=last.sequence))
                await connection.execute(
                    "UPDATE trust_head SET sequence = greatest(sequence, $1) WHERE singleton", last.sequence
                )
                await replay.take_away(change, last)
                await replay.begin_anew(change, key, last)
    until = replay.unmatched_until
    return {**replay.counts, "subjects_known_by_digest_until": None if until is None else until.isoformat()}
