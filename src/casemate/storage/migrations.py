"""Brings a database's schema up to date from numbered SQL files.

A file that was applied never changes again: its digest is recorded beside its
number and compared on every start, so that two databases with the same number
have the same schema.

A program runs on a schema newer than its own only where every file that it does not
know says in its first line that it is additive: it takes nothing away that programs
before it read or write. That is what a rolling upgrade runs on while it lasts, and
what an upgrade that was taken back leaves behind.

If this fails: a service runs on a schema it was not written for. Rows of
authority still carry a MAC over their columns and do not verify when those change.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from casemate.errors import ConfigurationError
from casemate.storage.pool import storage_errors

if TYPE_CHECKING:
    from casemate.storage.pool import Connection, Pool

_FILE_NAME: Final = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql", re.ASCII)
_LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"casemate.migrations").digest()[:8], signed=True)
# A replica that starts beside another waits this long for it to migrate.
_TIMEOUT_SECONDS: Final = 300.0
_BOOKKEEPING: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_HAS_ADDITIVE: Final = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('schema_migrations') AND attname = 'additive')
"""
_ADD_ADDITIVE: Final = "ALTER TABLE schema_migrations ADD COLUMN additive boolean NOT NULL DEFAULT false"

ADDITIVE: Final = "-- additive: programs from before it run on"
"""The first line of a migration on whose schema the programs before it go on running."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Migration:
    number: int
    name: str
    sql: str
    sha256: bytes

    @property
    def is_additive(self) -> bool:
        """Whether programs that do not know it may run on what it makes."""
        return self.sql.partition("\n")[0].rstrip() == ADDITIVE


async def migrate(connection_or_pool: Connection | Pool, directory: Path) -> list[int]:
    """Applies the files of `directory` that the database does not have, and returns their numbers.

    Files are named `0001_name.sql`, numbered without gaps. All of them are applied in one
    transaction under an advisory lock: several replicas may start at once, and a failure
    leaves the database as it was. So no file may end the transaction itself.

    Raises:
        ConfigurationError: a file is misnamed or missing, an applied file has changed, the
            database is newer than the files by one that is not additive, or a file's SQL fails.
        Unavailable: the database is not there.
    """
    migrations = _load(directory)
    with storage_errors():
        if isinstance(connection_or_pool, asyncpg.Pool):
            async with connection_or_pool.acquire() as connection:
                return await _migrate(connection, migrations)
        return await _migrate(connection_or_pool, migrations)


def digests(directory: Path) -> tuple[str, ...]:
    """The SHA-256 of each file of `directory`, in order: what a database that has them all has recorded.

    Raises:
        ConfigurationError: a file is misnamed or missing.
    """
    return tuple(migration.sha256.hex() for migration in _load(directory))


def _load(directory: Path) -> list[_Migration]:
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".sql")
    except OSError as error:
        raise ConfigurationError(f"migrations {directory} cannot be read: {error.strerror}") from error
    migrations = []
    for expected, file in enumerate(files, start=1):
        match = _FILE_NAME.fullmatch(file.name)
        if match is None:
            raise ConfigurationError(f'migration {file.name}: the name must look like "0001_name.sql"')
        if int(match[1]) != expected:
            raise ConfigurationError(f"migration {file.name}: number {expected:04} was expected here")
        content = file.read_bytes()
        digest = hashlib.sha256(content).digest()
        migrations.append(_Migration(expected, file.stem, content.decode(), digest))
    if not migrations:
        raise ConfigurationError(f"there are no migrations in {directory}")
    return migrations


async def _migrate(connection: Connection, migrations: list[_Migration]) -> list[int]:
    applied = []
    async with connection.transaction():
        # Waiting for another replica's migrations must not meet the time limits of ordinary statements.
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        # The transaction's own lock, which ends with it whatever happens and passes through poolers.
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY, timeout=_TIMEOUT_SECONDS)
        await connection.execute(_BOOKKEEPING)
        if not await connection.fetchval(_HAS_ADDITIVE):
            # Only once: its lock waits for whoever reads the table, and a backup does so for long.
            await connection.execute(_ADD_ADDITIVE)
        records = await connection.fetch("SELECT number, sha256, additive FROM schema_migrations ORDER BY number")
        recorded: dict[int, bytes] = {record["number"]: record["sha256"] for record in records}
        _require_tolerable([record["number"] for record in records if not record["additive"]], migrations)
        _compare(recorded, migrations)
        for migration in migrations:
            if migration.number not in recorded:
                await _apply(connection, migration)
                applied.append(migration.number)
    return applied


def _require_tolerable(strict: list[int], migrations: list[_Migration]) -> None:
    """Returns if every migration that this program does not know lets it run."""
    unknown = [number for number in strict if number > len(migrations)]
    if unknown:
        raise ConfigurationError(
            f"the database is at migration {max(unknown):04}, newer than this program, which knows {len(migrations):04}"
        )


def _compare(recorded: dict[int, bytes], migrations: list[_Migration]) -> None:
    newest = max(recorded, default=0)
    if newest > len(migrations):
        _LOGGER.warning("the database is at migration %04d, and this program knows %04d", newest, len(migrations))
    for migration in migrations[:newest]:
        if recorded.get(migration.number) != migration.sha256:
            raise ConfigurationError(f"migration {migration.name} is not the file that was applied to this database")


async def _apply(connection: Connection, migration: _Migration) -> None:
    try:
        await connection.execute(migration.sql, timeout=_TIMEOUT_SECONDS)
    except (asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        # The message alone: the detail of a failed constraint quotes the row.
        raise ConfigurationError(f"migration {migration.name} failed: {error.args[0]}") from None
    if not connection.is_in_transaction():
        raise ConfigurationError(f"migration {migration.name} ends the transaction, which it must not")
    await connection.execute(
        "INSERT INTO schema_migrations (number, name, sha256, additive) VALUES ($1, $2, $3, $4)",
        *(migration.number, migration.name, migration.sha256, migration.is_additive),
    )
