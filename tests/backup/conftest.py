"""The small house of these tests, with a pushed version in it, and an empty machine to restore it on."""

from __future__ import annotations

import pytest_asyncio

from casemate.backup.places import AUTH, DATAKEYS, DATASETS
from tests.backup.small import build_house
from tests.services.datasets.conftest import _emptied, stopped_world  # noqa: F401  # a fixture, asked for by its name


@pytest_asyncio.fixture
async def house(stopped_world, embedded_postgres, tmp_path):
    """Both services, stopped; version 1 of acme's digits is pushed."""
    auth = await _emptied(embedded_postgres, "test_backup_auth")
    house = build_house(stopped_world.settings, auth, tmp_path)
    async with stopped_world.serve():
        await stopped_world.actor().push_all(stopped_world.signed())
    await house.admit()
    return house


@pytest_asyncio.fixture
async def elsewhere(house, embedded_postgres, tmp_path):
    """Where it is restored: empty databases and folders."""
    names = {AUTH: "test_restored_auth", DATASETS: "test_restored_rows", DATAKEYS: "test_restored_keys"}
    databases = {kind: await _emptied(embedded_postgres, name) for kind, name in names.items()}
    return house.moved(tmp_path / "elsewhere", databases)
