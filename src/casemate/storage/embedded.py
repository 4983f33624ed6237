"""PostgreSQL from a wheel, for one machine and for tests.

Only the wheel's programs are used. Its own server class runs `initdb` with
`trust` and, as root, opens every parent folder to all users; here the socket asks
for SCRAM, folders are closed, and no existing parent is touched.

If this fails: another user of the machine reads or changes the database. Rows
stay sealed and records of authority carry a MAC that they cannot make.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from casemate.errors import ConfigurationError, Unavailable
from casemate.secret import Secret
from casemate.settings import DatabaseSettings
from casemate.storage import process
from casemate.storage.data_folder import SUPERUSER, end_predecessor, make_data
from casemate.storage.placement import (
    ELSEWHERE,
    Placement,
    base_of,
    make_folder,
    place,
    reachable_programs,
    socket_directory_of,
)
from casemate.storage.pool import open_connection
from casemate.storage.roles import close_to_public, ensure_role_and_database, open_schema

_START_SECONDS: Final = 120.0  # recovery after a crash replays the log first
_LOG_BYTES: Final = 16 * 1024 * 1024
_ERASED: Final = ("data", "data-partial", "programs-*", "lock", "location", "*.password", "server.log*")
_PASSWORD_FILE: Final = "superuser.password"  # noqa: S105  # the name of a file

# On the command line, so that neither ALTER SYSTEM nor an edited file weakens them.
_OPTIONS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    # No statement, parameter or row reaches the log: neither by these…
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
    # …nor by an error's own text. `log` ranks above `error`; `terse` leaves out the detail that quotes rows.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "logging_collector": "off",
}


class EmbeddedPostgres:
    """A PostgreSQL server in a folder, ours alone, that ends when we end.

    It listens on a Unix socket only. The process that started it must be alive, or it shuts
    down; should it have outlived one that was killed, the next start shuts it down and
    starts it again. Data survive all of that.

    Args:
        directory: state folder, made with mode 0700 if missing. As root, when the user that
            PostgreSQL runs as cannot reach it, it only holds a file `location`.
        elsewhere: where the data go in that case.
        programs: folder of another PostgreSQL's programs, which its user can reach; the wheel's if not given.
    """

    def __init__(self, *, directory: Path, elsewhere: Path = ELSEWHERE, programs: Path | None = None) -> None:
        self._state = Path(os.path.abspath(directory))  # noqa: PTH100  # resolve() would follow the user's links
        self._elsewhere = elsewhere
        self._programs = programs
        self._child: subprocess.Popen[bytes] | None = None
        self._locks: list[IO[bytes]] = []

    @property
    def socket_directory(self) -> Path:
        """Folder of the server's socket; the same on every start of the same state folder."""
        return socket_directory_of(base_of(self._state))

    @property
    def superuser(self) -> DatabaseSettings:
        """The database `postgres`, as the superuser.

        Raises:
            ConfigurationError: the server has never been started here.
        """
        return self._settings("postgres", SUPERUSER, self._password())

    @property
    def log_file(self) -> Path:
        """What the server says about itself; no statement and no value of any row."""
        return self._state / "server.log"

    @property
    def pid(self) -> int | None:
        """The running server's process, or None."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def data_directory(self) -> Path:
        """Where the data are: below the state folder, unless PostgreSQL's user cannot reach that."""
        return base_of(self._state) / "data"

    async def start(self, *, create: bool = True) -> None:
        """Starts the server, from the main thread, and returns when it answers.

        Makes the data folder on first use. Takes well under a second on a folder that has data.

        Args:
            create: whether this may be the first use. Where there were data, an empty
                server in their place would be worse than none.

        Raises:
            ConfigurationError: another live process runs it, or it cannot be made or started; one line says why.
        """
        if self._child is not None:
            raise RuntimeError("already started")
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock(self._state)
            placement = place(self._state, elsewhere=self._elsewhere)
            if placement.base != self._state:
                # A copy of the state folder names the same data.
                self._take_lock(placement.base)
            await self._start(placement, create=create)
        except OSError as error:
            await self.stop()
            raise ConfigurationError(f"PostgreSQL cannot be prepared: {error.filename}: {error.strerror}") from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self, placement: Placement, *, create: bool) -> None:
        programs = self._programs or reachable_programs(placement)
        await end_predecessor(placement.data)
        if not placement.data.exists():
            if not create:
                raise ConfigurationError(f"the database in {placement.data} is gone")
            make_data(placement, programs, password_file=self._state / _PASSWORD_FILE)
        make_folder(self.socket_directory, placement.account, 0o700)
        await self._start_postgres(placement, programs)
        connection = await open_connection(self.superuser)
        try:
            await close_to_public(connection)
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Shuts the server down, fast: open transactions roll back. Does nothing if it is not running."""
        if self._child is not None:
            await process.end_child(self._child)
            self._child = None
        while self._locks:
            self._locks.pop().close()

    async def erase(self) -> None:
        """Stops the server and deletes everything that it ever wrote, wherever that is."""
        await self.stop()
        base = base_of(self._state)
        shutil.rmtree(socket_directory_of(base), ignore_errors=True)
        for folder in {base, self._state}:
            # By name, since the folder may have been there before us and hold what is not ours.
            for pattern in _ERASED:
                for path in folder.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def ensure_database(self, name: str, password: Secret[str]) -> DatabaseSettings:
        """Makes the database `name` and its only role, of the same name, and sets that role's password.

        The role may connect there and create schemas and tables there, and nowhere else. Safe to repeat.

        Raises:
            ConfigurationError: `name` is not lower-case letters, digits and underscores, or the password not ASCII.
        """
        superuser = self.superuser
        connection = await open_connection(superuser)
        try:
            await ensure_role_and_database(connection, name, password)
        finally:
            await connection.close()
        inside = await open_connection(self._settings(name, SUPERUSER, superuser.password))
        try:
            await open_schema(inside, name)
        finally:
            await inside.close()
        return self._settings(name, name, password)

    def _settings(self, name: str, user: str, password: Secret[str]) -> DatabaseSettings:
        return DatabaseSettings(host=str(self.socket_directory), name=name, user=user, password=password)

    def _password(self) -> Secret[str]:
        file = self._state / _PASSWORD_FILE
        try:
            return Secret(file.read_text())
        except OSError as error:
            raise ConfigurationError(f"the superuser's password {file} cannot be read: {error.strerror}") from error

    def _take_lock(self, folder: Path) -> None:
        """One process at a time. The kernel frees the lock of a process that is killed."""
        lock = (folder / "lock").open("ab")
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"another process is running the database in {folder}") from None

    async def _start_postgres(self, placement: Placement, programs: Path) -> None:
        command: list[str | Path] = [programs / "postgres", "-D", placement.data]
        options = _OPTIONS | {"unix_socket_directories": str(self.socket_directory)}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        log_file = self.log_file
        if log_file.exists() and log_file.stat().st_size > _LOG_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
        for _ in range(int(_START_SECONDS / process.POLL_SECONDS)):
            with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
                written = log.tell()
                self._child = process.spawn(placement.account, *command, *arguments, log=log)
            if await self._becomes_ready(placement, self._child):
                return
            self._child = None
            said = log_file.read_bytes()[written:].decode(errors="replace").strip()
            if "shared memory block" not in said:
                raise ConfigurationError(f"PostgreSQL did not start: {said[-500:] or 'it said nothing'}")
            # Children of a killed postmaster are still noticing that it is gone.
            await asyncio.sleep(process.POLL_SECONDS)
        raise ConfigurationError(f"PostgreSQL did not start: an earlier one still holds {placement.data}")

    async def _becomes_ready(self, placement: Placement, child: subprocess.Popen[bytes]) -> bool:
        """True when it says so in `postmaster.pid`; False when it has ended instead."""
        for _ in range(int(_START_SECONDS / process.POLL_SECONDS)):
            if child.poll() is not None:
                return False
            with contextlib.suppress(FileNotFoundError):
                lines = (placement.data / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(child.pid) and lines[7].strip() == "ready":
                    return True
            await asyncio.sleep(process.POLL_SECONDS)
        raise Unavailable("PostgreSQL is still recovering; its log says how far it is")
