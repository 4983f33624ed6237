"""The world of these tests: one running service per test."""

from __future__ import annotations

from uuid import uuid4

import pytest_asyncio

from casemate.storage.pool import open_connection
from tests.services.datasets.world import World, build_settings, password


@pytest_asyncio.fixture
async def stopped_world(embedded_postgres, leaf, tmp_path):
    """Everything but the running service."""
    names = [f"test_{kind}_{uuid4().hex[:12]}" for kind in ("rows", "keys")]
    database, data_keys = [await embedded_postgres.ensure_database(name, password()) for name in names]
    settings = build_settings(
        identity=leaf("service", service="datasets"), database=database, data_keys=data_keys, state=tmp_path
    )
    yield World(settings=settings, leaf=leaf, superuser=embedded_postgres.superuser)
    connection = await open_connection(embedded_postgres.superuser)
    try:
        for name in names:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            await connection.execute(f'DROP ROLE "{name}"')
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def world(stopped_world):
    """A running service."""
    async with stopped_world.serve():
        yield stopped_world
