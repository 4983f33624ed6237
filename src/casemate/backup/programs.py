"""PostgreSQL's own `pg_dump` and `pg_restore`, streamed through us.

Over a Unix socket the programs of the embedded wheel are used where it is installed.
Its libpq was built without TLS, so a database over TCP takes those on the PATH. The
password goes by a file of mode 0600 that lives as long as the program, never by an
argument or the environment.

If this fails: a dump is read by whoever is between us and the database. Rows in it
are sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Final

from casemate.backup.folder import PIECE_BYTES
from casemate.errors import ConfigurationError
from casemate.settings import DatabaseSettings
from casemate.storage.placement import wheel_programs

_SEARCHED: Final = "/usr/lib/postgresql/bin:/usr/local/bin:/usr/bin:/bin"


def find_program(name: str, database: DatabaseSettings, *, search: str = _SEARCHED) -> Path:
    """The program for this database.

    Raises:
        ConfigurationError: there is none.
    """
    if database.is_local:
        with contextlib.suppress(ConfigurationError):
            program = wheel_programs() / name
            if program.exists():
                return program
    found = shutil.which(name, path=search)
    if found is None:
        raise ConfigurationError(f"there is no {name} here: install PostgreSQL's client programs")
    return Path(found)


async def dump(database: DatabaseSettings, *, snapshot: str) -> AsyncIterator[bytes]:
    """The database as of an exported snapshot, in pg_dump's custom format.

    Raises:
        ConfigurationError: `pg_dump` is not there or fails; carries the end of what it said.
    """
    arguments = ("--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}")
    with _environment(database) as environment:
        process = await asyncio.create_subprocess_exec(
            *(find_program("pg_dump", database), *arguments),
            env=environment,
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with _ended(process):
            if process.stdout is None or process.stderr is None:
                raise RuntimeError("pipes were asked for")
            said = asyncio.create_task(process.stderr.read())
            while piece := await process.stdout.read(PIECE_BYTES):
                yield piece
            await _require_success("pg_dump", process, await said)


async def restore(database: DatabaseSettings, pieces: Iterable[bytes]) -> None:
    """Puts a dump into an empty database, in one transaction: all of it or nothing.

    When `pieces` raises before its end, nothing is committed.

    Raises:
        ConfigurationError: `pg_restore` is not there or fails; carries the end of what it said.
        StoredDataUnreadable: by `pieces`.
    """
    arguments = (
        # No comments: that of the schema is its owner's to give, and no role of a service owns it.
        *("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--no-comments"),
        f"--dbname={database.name}",
    )
    with _environment(database) as environment:
        process = await asyncio.create_subprocess_exec(
            *(find_program("pg_restore", database), *arguments),
            env=environment,
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with _ended(process):
            if process.stdin is None or process.stderr is None:
                raise RuntimeError("pipes were asked for")
            said = asyncio.create_task(process.stderr.read())
            # What it says of its own end tells more than that it stopped listening.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in pieces:
                    process.stdin.write(piece)
                    await process.stdin.drain()
                process.stdin.close()
            await _require_success("pg_restore", process, await said)


@contextlib.contextmanager
def _environment(database: DatabaseSettings) -> Iterator[dict[str, str]]:
    """Everything that libpq is told; nothing of ours is inherited."""
    with tempfile.TemporaryDirectory(prefix="casemate-backup-") as folder:
        passfile = Path(folder) / "pgpass"
        descriptor = os.open(passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            password = database.password.reveal().replace("\\", "\\\\").replace(":", "\\:")
            stream.write(f"*:*:*:*:{password}\n")
        values = {
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C",
            "TZ": "UTC",
            "HOME": folder,  # no .pgpass, no certificates of anybody's
            "PGHOST": database.host,
            "PGPORT": str(database.port),
            "PGDATABASE": database.name,
            "PGUSER": database.user,
            "PGPASSFILE": str(passfile),
            "PGAPPNAME": "casemate-backup",
            "PGCONNECT_TIMEOUT": "10",
        }
        if not database.is_local:
            values |= {
                "PGSSLMODE": "verify-full",
                "PGSSLMINPROTOCOLVERSION": "TLSv1.3",
                "PGSSLROOTCERT": str(database.ca_file),
                "PGSSLCERT": str(database.cert_file),
                "PGSSLKEY": str(database.key_file),
            }
        yield values


@contextlib.asynccontextmanager
async def _ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Leaves no process behind: killed before its input ends, `pg_restore` commits nothing."""
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _require_success(name: str, process: asyncio.subprocess.Process, said: bytes) -> None:
    if await process.wait():
        lines = said.decode(errors="replace").strip().splitlines()[-3:] or ["it said nothing"]
        raise ConfigurationError(f"{name} failed: {' | '.join(lines)}")
