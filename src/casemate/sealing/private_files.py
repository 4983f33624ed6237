"""Files that only their owner may read, written whole or not at all.

If this fails: another user of the machine reads a key-encryption key, and with
it whatever that key wraps. The other services have keys of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from casemate.errors import ConfigurationError

_MAX_BYTES = 64 * 1024  # keys and certificates; anything longer is the wrong file


def read_private(path: Path, *, what: str, group_may_read: bool = False) -> bytes:
    """The content of a file that nobody else can read.

    Args:
        path: the file. A link is followed, as mounted secrets are links.
        what: what the file is, for the message.
        group_may_read: whether its group may, as an orchestrator's mount needs it.

    Raises:
        ConfigurationError: it is missing, not a plain file, too long, or its
            mode lets the group or others in.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{what} is missing: {path}") from error
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be read: {path}: {error.strerror}") from error
    try:
        # Judged on the open file, so that it cannot be exchanged in between.
        _require_private(os.fstat(descriptor), path, what, forbidden=0o037 if group_may_read else 0o077)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"{what} is too long to be one: {path}")
    return data


def write_file(path: Path, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Put `data` at `path` in one step and on the disk: readers see the old content or the new.

    Args:
        path: where. Missing folders are made with mode 0700.
        data: the content.
        mode: the mode of the file from its first byte on.
        replace: whether a file that is there gives way.

    Raises:
        ConfigurationError: `path` exists and `replace` is false, or cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            _write_new(temporary, data, mode)
            if replace:
                temporary.replace(path)
            else:
                # A hard link, unlike a rename, fails where something is.
                path.hardlink_to(temporary)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise ConfigurationError(f"there is a file already, and it is not replaced: {path}") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


def rewrite_file(path: Path, data: bytes) -> None:
    """Put other content into a file that is there; its mode and its owner stay. A link is followed.

    Raises:
        ConfigurationError: it is gone, or cannot be written. The old content is there still.
    """
    try:
        target = path.resolve(strict=True)
        status = target.stat()
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            _write_new(temporary, data, stat.S_IMODE(status.st_mode), owner=(status.st_uid, status.st_gid))
            temporary.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(target.parent)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Waits until nobody else is within such a block for a file of the same folder, behind links.

    The folder is locked and not the file: a file that is replaced takes its lock with it. For
    processes of one machine, and for whoever asks; it keeps nobody else from writing.

    Raises:
        ConfigurationError: the folder is not there or cannot be locked.
    """
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"the folder of {path} cannot be locked: {error.strerror}") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigurationError(f"the folder of {path} cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(folder)


def _require_private(status: os.stat_result, path: Path, what: str, *, forbidden: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{what} is not a plain file: {path}")
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigurationError(f"{what} can be read by others (mode {mode:04o}): run chmod 600 {path}")


def _write_new(path: Path, data: bytes, mode: int, *, owner: tuple[int, int] | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None and owner != (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid):
            os.fchown(descriptor, *owner)  # root rotates what a service reads
        # The umask may have taken bits away that a shared file needs.
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
