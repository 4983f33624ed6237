"""The embedded server keeps what it promises about users, folders and its own life."""

from __future__ import annotations

from casemate.settings import DatabaseSettings
from casemate.storage.pool import open_pool


async def test_database_of_a_service_is_reached_by_its_own_role(database: DatabaseSettings):
    async with await open_pool(database) as pool:
        assert await pool.fetchval("SELECT current_user") == database.user
        await pool.execute("CREATE TABLE seen (number integer)")
