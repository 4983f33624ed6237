"""A schema is what its numbered files say, in every database and after every failure."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.settings import DatabaseSettings
from casemate.storage.migrations import migrate
from casemate.storage.pool import open_connection, open_pool


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, sql in files.items():
        (folder / f"{name.removeprefix('n')}.sql").write_text(sql)
    return folder


FIRST = {"n0001_rooms": "CREATE TABLE rooms (number integer PRIMARY KEY); INSERT INTO rooms VALUES (1);"}
SECOND = {"n0002_doors": "CREATE TABLE doors (room integer REFERENCES rooms)"}


async def test_files_are_applied_once_in_order_and_new_ones_later(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        assert await migrate(pool, write(tmp_path / "schema", **FIRST)) == [1]
        assert await migrate(pool, tmp_path / "schema") == []
        assert await migrate(pool, write(tmp_path / "schema", **SECOND)) == [2]
        assert await pool.fetchval("SELECT count(*) FROM rooms") == 1


async def test_single_connection_will_do(database: DatabaseSettings, tmp_path: Path):
    connection = await open_connection(database)
    assert await migrate(connection, write(tmp_path / "schema", **FIRST, **SECOND)) == [1, 2]
    await connection.close()


async def test_replicas_that_start_together_apply_each_file_once(database: DatabaseSettings, tmp_path: Path):
    write(tmp_path / "schema", **FIRST, **SECOND)
    async with await open_pool(database, max_size=8) as pool:
        outcomes = await asyncio.gather(*(migrate(pool, tmp_path / "schema") for _ in range(8)))
    assert sorted(outcomes) == [[]] * 7 + [[1, 2]]


async def test_applied_file_that_changed_is_refused(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        await migrate(pool, write(tmp_path / "schema", **FIRST))
        write(tmp_path / "schema", n0001_rooms=FIRST["n0001_rooms"] + "\n")
        with pytest.raises(ConfigurationError, match="0001_rooms is not the file that was applied"):
            await migrate(pool, tmp_path / "schema")
        write(tmp_path / "schema", **FIRST)
        assert await migrate(pool, tmp_path / "schema") == []


async def test_database_newer_than_the_program_is_refused(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        await migrate(pool, write(tmp_path / "new", **FIRST, **SECOND))
        with pytest.raises(ConfigurationError, match="at migration 0002, newer than this program"):
            await migrate(pool, write(tmp_path / "old", **FIRST))


async def test_failing_file_leaves_the_database_as_it_was(database: DatabaseSettings, tmp_path: Path):
    broken = {"n0002_doors": "CREATE TABLE doors (room integer); INSERT INTO rooms VALUES (1)"}
    async with await open_pool(database) as pool:
        with pytest.raises(ConfigurationError, match="0002_doors failed"):
            await migrate(pool, write(tmp_path / "schema", **FIRST, **broken))
        assert await pool.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        assert await migrate(pool, write(tmp_path / "schema", **SECOND)) == [1, 2]


async def test_file_that_ends_the_transaction_is_refused(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        with pytest.raises(ConfigurationError, match="ends the transaction"):
            await migrate(pool, write(tmp_path / "schema", n0001_rooms="CREATE TABLE rooms (); COMMIT;"))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"n0002_doors": "SELECT 1"}, "number 0001 was expected"),
        ({"n0001_rooms": "SELECT 1", "n0001_windows": "SELECT 1"}, "number 0002 was expected"),
        ({"n0001-rooms": "SELECT 1"}, "must look like"),
        ({"n1_rooms": "SELECT 1"}, "must look like"),
        ({}, "no migrations"),
    ],
)
async def test_folder_that_is_not_a_plain_sequence_is_refused(
    database: DatabaseSettings, tmp_path: Path, files: dict[str, str], says: str
):
    async with await open_pool(database) as pool:
        with pytest.raises(ConfigurationError, match=says):
            await migrate(pool, write(tmp_path / "schema", **files))


async def test_missing_folder_is_refused(database: DatabaseSettings, tmp_path: Path):
    async with await open_pool(database) as pool:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            await migrate(pool, tmp_path / "absent")
