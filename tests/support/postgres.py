"""A real PostgreSQL for tests: one server per run, one empty database per test."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from casemate.secret import Secret
from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection


def make_reachable_folder() -> Path:
    """A new folder that PostgreSQL's user can pass through; the caller deletes it."""
    folder = Path(tempfile.mkdtemp(prefix="casemate-test-"))
    if os.geteuid() == 0:
        # Ours to open: otherwise the data would go to /var/lib, as they do for a clone below /root.
        folder.chmod(0o711)
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def embedded_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A server of this test run, on a socket below the system's temporary folder."""
    parent = make_reachable_folder()
    server = EmbeddedPostgres(directory=parent / "postgres")
    try:
        await server.start()
        yield server
    finally:
        await server.erase()
        shutil.rmtree(parent)


@pytest_asyncio.fixture
async def database(embedded_postgres: EmbeddedPostgres) -> AsyncIterator[DatabaseSettings]:
    """An empty database with a role of its own, dropped after the test."""
    name = f"test_{secrets.token_hex(8)}"
    yield await embedded_postgres.ensure_database(name, Secret(secrets.token_urlsafe(24)))
    superuser = await open_connection(embedded_postgres.superuser)
    try:
        await superuser.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await superuser.execute(f'DROP ROLE "{name}"')
    finally:
        await superuser.close()
