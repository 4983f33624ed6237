"""The embedded database as its superuser sees it: for showing what a thief of it would see."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from casemate.cli.state import StateDirectory
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection

if TYPE_CHECKING:
    from asyncpg import Connection, Record


@contextlib.asynccontextmanager
async def connect_as_superuser(state: StateDirectory, database: str) -> AsyncIterator[Connection[Record]]:
    """A connection to one of the databases of a running cluster, above all its roles."""
    superuser = EmbeddedPostgres(directory=state.postgres).superuser
    connection = await open_connection(dataclasses.replace(superuser, name=database))
    try:
        yield connection
    finally:
        await connection.close()
