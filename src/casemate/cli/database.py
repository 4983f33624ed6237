"""The embedded database as its superuser sees it: for showing what a thief of it would see."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg

from casemate.cli.state import StateDirectory
from casemate.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from asyncpg import Connection, Record


@contextlib.asynccontextmanager
async def connect_as_superuser(state: StateDirectory, database: str) -> AsyncIterator[Connection[Record]]:
    """A connection to one of the databases of a running cluster, above all its roles."""
    superuser = EmbeddedPostgres(directory=state.postgres).superuser
    connection = await asyncpg.connect(
        host=superuser.host,
        port=superuser.port,
        user=superuser.user,
        password=superuser.password.reveal(),
        database=database,
        timeout=10,
    )
    try:
        yield connection
    finally:
        await connection.close()
