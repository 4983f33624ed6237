"""The world of these tests: one running service per test, on databases that each test finds empty."""

from __future__ import annotations

from dataclasses import replace

import pytest_asyncio

from casemate.settings import DatabaseSettings
from casemate.storage.pool import open_connection
from tests.services.datasets.world import World, build_settings, password

NAMES = ("test_datasets_rows", "test_datasets_keys")


async def _emptied(embedded_postgres, name: str) -> DatabaseSettings:
    """Emptying one database over and over is several times faster than making a new one."""
    database = await embedded_postgres.ensure_database(name, password())
    connection = await open_connection(replace(embedded_postgres.superuser, name=name))
    try:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA public TO {name}")
    finally:
        await connection.close()
    return database


@pytest_asyncio.fixture
async def stopped_world(embedded_postgres, leaf, tmp_path):
    """Everything but the running service."""
    database, data_keys = [await _emptied(embedded_postgres, name) for name in NAMES]
    settings = build_settings(
        identity=leaf("service", service="datasets"), database=database, data_keys=data_keys, state=tmp_path
    )
    return World(settings=settings, leaf=leaf, superuser=embedded_postgres.superuser)


@pytest_asyncio.fixture
async def world(stopped_world):
    """A running service."""
    async with stopped_world.serve():
        yield stopped_world
