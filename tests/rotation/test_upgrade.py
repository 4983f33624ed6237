"""N → N+1 → N: which migrations a program before them runs on, and that it does so under load."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import services.auth
from casemate.errors import ConfigurationError
from casemate.settings import DatabaseSettings
from casemate.storage.migrations import ADDITIVE, migrate
from casemate.storage.pool import open_pool

SCHEMA = Path(services.auth.__file__).parent / "schema"
EXPAND = "ALTER TABLE client ADD COLUMN contact text NOT NULL DEFAULT '';\nCREATE TABLE note (id text PRIMARY KEY);\n"
CONTRACT = "DROP TABLE note;\nALTER TABLE client DROP COLUMN contact;\n"


def next_version(tmp_path: Path, *files: str) -> Path:
    """The schema folder of a program that has these migrations more."""
    folder = tmp_path / f"after-{len(files)}"
    shutil.copytree(SCHEMA, folder)
    number = len(list(SCHEMA.glob("*.sql")))
    for at, sql in enumerate(files, number + 1):
        (folder / f"{at:04}_more.sql").write_text(sql)
    return folder


async def test_a_program_runs_on_additive_migrations_that_it_does_not_know(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        await migrate(pool, SCHEMA)
        assert len(await migrate(pool, next_version(tmp_path, f"{ADDITIVE}\n{EXPAND}"))) == 1
        assert await migrate(pool, SCHEMA) == []  # rolled back: N starts on N+1's schema
        assert await migrate(pool, next_version(tmp_path / "again", f"{ADDITIVE}\n{EXPAND}")) == []


@pytest.mark.parametrize("first_line", ["", "-- additive\n", f"\n{ADDITIVE}\n"])
async def test_a_program_refuses_a_newer_schema_that_does_not_say_so(
    database: DatabaseSettings, tmp_path: Path, first_line: str
):
    async with await open_pool(database) as pool:
        await migrate(pool, SCHEMA)
        await migrate(pool, next_version(tmp_path, first_line + EXPAND))
        with pytest.raises(ConfigurationError, match="newer than this program"):
            await migrate(pool, SCHEMA)


async def test_one_that_takes_something_away_behind_an_additive_one_ends_the_way_back(
    database: DatabaseSettings, tmp_path: Path
):
    async with await open_pool(database) as pool:
        await migrate(pool, next_version(tmp_path, f"{ADDITIVE}\n{EXPAND}", CONTRACT))
        with pytest.raises(ConfigurationError, match="newer than this program"):
            await migrate(pool, SCHEMA)


async def test_a_database_from_before_the_rule_takes_it_up(database: DatabaseSettings):
    async with await open_pool(database) as pool:
        await migrate(pool, SCHEMA)
        await pool.execute("ALTER TABLE schema_migrations DROP COLUMN additive")
        assert await migrate(pool, SCHEMA) == []
        assert not await pool.fetchval("SELECT bool_or(additive) FROM schema_migrations")


async def test_a_start_does_not_wait_for_a_backup_that_reads_the_schema(database: DatabaseSettings):
    async with await open_pool(database) as pool:
        await migrate(pool, SCHEMA)
        async with pool.acquire() as reading, reading.transaction():
            await reading.execute("LOCK TABLE schema_migrations IN ACCESS SHARE MODE")  # as pg_dump holds it
            async with asyncio.timeout(10):
                assert await migrate(pool, SCHEMA) == []
