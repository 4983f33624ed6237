"""A database password changes under load: first its file, then the role; no query fails, and the old one is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.secret import Secret
from casemate.settings import DatabaseSettings, load_settings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection, open_pool

ROTATIONS = 4


def settings_of(database: DatabaseSettings, file: Path) -> DatabaseSettings:
    """As a service reads them: the password by its file."""
    return load_settings(
        DatabaseSettings,
        {
            "CASEMATE_AUTH_DATABASE_HOST": database.host,
            "CASEMATE_AUTH_DATABASE_PORT": str(database.port),
            "CASEMATE_AUTH_DATABASE_NAME": database.name,
            "CASEMATE_AUTH_DATABASE_USER": database.user,
            "CASEMATE_AUTH_DATABASE_PASSWORD_FILE": str(file),
        },
        component="auth",
    )


def put(file: Path, password: str) -> None:
    """By rename, as orchestrators do."""
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(password + "\n")
    new.replace(file)


async def test_a_password_rotates_under_load_without_one_failed_query(
    embedded_postgres: EmbeddedPostgres, database: DatabaseSettings, tmp_path: Path
):
    file = tmp_path / "password"
    put(file, database.password.reveal())
    settings = settings_of(database, file)
    done, queries = asyncio.Event(), 0

    async with await open_pool(settings, min_size=2, max_size=4) as pool:

        async def load() -> None:
            nonlocal queries
            while not done.is_set():
                assert await pool.fetchval("SELECT 1") == 1
                queries += 1

        async def goes_on() -> None:
            """Every connection is made anew, and queries succeed on them."""
            await pool.expire_connections()
            seen = queries
            async with asyncio.timeout(30):
                while queries < seen + 20:
                    assert not any(task.done() for task in loading)
                    await asyncio.sleep(0.005)

        loading = [asyncio.create_task(load()) for _ in range(4)]
        old = database.password
        for _ in range(ROTATIONS):
            new = Secret(secrets.token_urlsafe(24))
            put(file, new.reveal())
            await goes_on()  # by the old one, which the role still has
            assert await embedded_postgres.ensure_database(database.name, new)
            await goes_on()  # by the new one
            with pytest.raises(ConfigurationError, match="login of role"):
                await open_connection(dataclasses.replace(database, password=old))
            await (await open_connection(dataclasses.replace(database, password=new))).close()
            old = new
        done.set()
        await asyncio.gather(*loading)
    assert queries >= ROTATIONS * 40


async def test_a_service_whose_file_is_gone_for_a_moment_goes_on_with_the_password_that_worked(
    database: DatabaseSettings, tmp_path: Path
):
    file = tmp_path / "password"
    put(file, database.password.reveal())
    settings = settings_of(database, file)
    file.unlink()
    await (await open_connection(settings)).close()
    put(file, "another")
    await (await open_connection(settings)).close()


async def test_a_password_that_is_nowhere_right_is_refused_at_once(database: DatabaseSettings, tmp_path: Path):
    file = tmp_path / "password"
    put(file, "wrong")
    with pytest.raises(ConfigurationError, match="login of role"):
        await open_connection(settings_of(database, file))
