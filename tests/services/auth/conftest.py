"""The world of these tests: one running service per test, or only its store."""

from __future__ import annotations

import pytest_asyncio

from tests.services.auth.exchange_world import House
from tests.services.auth.world import build_world, open_shelf


@pytest_asyncio.fixture
async def shelf(database, tmp_path):
    async with open_shelf(database, tmp_path) as opened:
        yield opened


@pytest_asyncio.fixture
async def world(database, leaf, tmp_path):
    async with build_world(database, leaf, tmp_path) as built:
        yield built


@pytest_asyncio.fixture
async def house(world):
    """An external issuer, a gateway that may speak for its subjects, and the operator."""
    house = House(world)
    await house.build()
    return house
