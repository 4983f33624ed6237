"""Sealed models on disk: `<tenant>/<model>/<number>/`.

A version is one directory: `manifest.dsse.json` as signed, `key.wrapped`, and
`files/<name>.sealed`. It appears by one rename, whole or not at all. The
repository says what could be loaded, never what may be: that comes by the
trust feed.

If this fails: whoever can write here offers other bytes; the loader compares
every plaintext byte with a manifest that the feed pins by digest, and refuses.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from casemate.errors import FailedPrecondition, Reason
from services.inference.names import is_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MANIFEST = "manifest.dsse.json"
WRAPPED_KEY = "key.wrapped"
FILES = "files"
SEALED = ".sealed"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE_BYTES = 1024 * 1024
_STAGING = ".staging-"
_DISCARD = ".discard-"
_ABANDONED_SECONDS = 3600.0


class NotStored(FailedPrecondition):
    """The repository has not what was asked for, or has it in a form that is not read."""

    default_reason = Reason.MODEL_REFUSED


@dataclass(frozen=True, slots=True)
class Slot:
    """One version's place, made of names that passed `is_name` only."""

    tenant: str
    model: str
    number: int

    def __post_init__(self) -> None:
        if not (is_name(self.tenant) and is_name(self.model) and self.number > 0):
            raise NotStored("a name that is no path component")

    @property
    def parts(self) -> tuple[str, str, str]:
        """The directories from the repository's root down."""
        return self.tenant, self.model, str(self.number)


class Stored(Protocol):
    """One stored version while it is read."""

    def read(self, *parts: str, limit: int) -> bytes:
        """The bytes of one part, at most `limit`.

        Raises:
            NotStored: absent, in a form that is not read, or longer.
        """
        ...


class Store(Protocol):
    """Where sealed versions lie."""

    def open(self, slot: Slot) -> contextlib.AbstractContextManager[Stored]:
        """A version for reading, which stays the same while it is open.

        Raises:
            NotStored: there is none.
        """
        ...

    def write(
        self,
        slot: Slot,
        *,
        manifest: bytes,
        wrapped_key: bytes,
        files: Mapping[str, Iterable[bytes]],
        still: Callable[[], None] = lambda: None,
    ) -> None:
        """Stores a version durably and whole; `files` are sealed pieces by plaintext file name.

        `still` is called when all is written and before it takes its place; what it raises leaves what was there.
        """
        ...

    def slots(self) -> list[Slot]:
        """Every version that is there."""
        ...

    def replace_wrapped_key(self, slot: Slot, before: bytes, after: bytes) -> bool:
        """Puts a new wrap of the same key in the place of the one that was read; whether that still was there."""
        ...


class StoredVersion:
    """One version's directory, held open: what is read lies in one directory, whatever takes its name meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, *parts: str, limit: int) -> bytes:
        """The bytes of a regular file of at most `limit` bytes.

        Raises:
            NotStored: absent, a link anywhere on the way, no regular file, or longer.
        """
        try:
            with _opened(self._descriptor, parts[:-1]) as directory:
                descriptor = os.open(parts[-1], _FILE, dir_fd=directory)
        except OSError as error:
            raise NotStored(f"{'/'.join(parts)}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotStored(f"{'/'.join(parts)}: no regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise NotStored(f"{'/'.join(parts)}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(data) > limit:
            raise NotStored(f"{'/'.join(parts)}: longer than it may be")
        return data


class Repository:
    """The versions under one directory, which the service owns alone or shares with its replicas.

    Args:
        root: the directory; made, readable by its owner alone, when missing.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._sweep()

    @contextlib.contextmanager
    def open(self, slot: Slot) -> Iterator[StoredVersion]:
        """The version's directory for reading, no link followed below the root.

        Raises:
            NotStored: there is none.
        """
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.ExitStack() as stack:
                try:
                    descriptor = stack.enter_context(_opened(root, slot.parts))
                except OSError as error:
                    raise NotStored(f"{slot}: {error.strerror}") from error
                yield StoredVersion(descriptor)
        finally:
            os.close(root)

    def write(
        self,
        slot: Slot,
        *,
        manifest: bytes,
        wrapped_key: bytes,
        files: Mapping[str, Iterable[bytes]],
        still: Callable[[], None] = lambda: None,
    ) -> None:
        """Stores a version durably; readers see the old directory or the new one, never a mixture.

        Args:
            slot: where.
            manifest: the signed envelope.
            wrapped_key: the data key, wrapped.
            files: sealed pieces by plaintext file name.
            still: called before it takes its place; raises when it is not to.
        """
        token = secrets.token_hex(8)
        staging = self._root / f"{_STAGING}{token}"
        staging.mkdir(mode=0o700)
        try:
            (staging / FILES).mkdir(mode=0o700)
            for name, pieces in files.items():
                if not is_name(name):
                    raise NotStored("a file name that is no path component")
                _write(staging / FILES / f"{name}{SEALED}", pieces)
            _write(staging / WRAPPED_KEY, (wrapped_key,))
            _write(staging / MANIFEST, (manifest,))
            for directory in (staging / FILES, staging):
                _sync(directory)
            still()
            self._install(staging, slot, discard=self._root / f"{_DISCARD}{token}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def slots(self) -> list[Slot]:
        """Every version that is there."""
        found = []
        for path in self._root.glob(f"*/*/*/{WRAPPED_KEY}"):
            tenant, model, number = path.relative_to(self._root).parts[:3]
            with contextlib.suppress(NotStored, ValueError):  # staging and what is not ours
                slot = Slot(tenant, model, int(number))
                if slot.parts == (tenant, model, number):
                    found.append(slot)
        return sorted(found, key=lambda slot: (slot.tenant, slot.model, slot.number))

    def replace_wrapped_key(self, slot: Slot, before: bytes, after: bytes) -> bool:
        """Puts a new wrap of the same key in the place of the one that was read; whether that still was there.

        In the directory that was opened: a version published meanwhile has another.
        """
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        temporary = f".{WRAPPED_KEY}.{secrets.token_hex(8)}"
        try:
            with _opened(root, slot.parts) as directory:
                if StoredVersion(directory).read(WRAPPED_KEY, limit=len(before)) != before:
                    return False
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(after)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(temporary, WRAPPED_KEY, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
                return True
        except (FileNotFoundError, NotStored):  # gone meanwhile, or longer than what was read
            return False
        finally:
            os.close(root)

    def _sweep(self) -> None:
        """Removes what a killed writer left; a young one may be another replica's, at work."""
        for left in (*self._root.glob(f"{_STAGING}*"), *self._root.glob(f"{_DISCARD}*")):
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(left)

    def _install(self, staging: Path, slot: Slot, *, discard: Path) -> None:
        target = self._root.joinpath(*slot.parts)
        for directory in (target.parent.parent, target.parent):  # `parents=True` would not pass the mode on
            directory.mkdir(mode=0o700, exist_ok=True)
        # Left by an earlier attempt that was not released; rename alone cannot replace a full directory.
        with contextlib.suppress(FileNotFoundError):
            target.rename(discard)
        staging.rename(target)
        for directory in (target.parent, target.parent.parent, self._root):
            _sync(directory)
        shutil.rmtree(discard, ignore_errors=True)


@contextlib.contextmanager
def _opened(directory: int, parts: Iterable[str]) -> Iterator[int]:
    """A descriptor of the directory `parts` below, each component opened without following a link."""
    current = os.dup(directory)
    try:
        for part in parts:
            deeper = os.open(part, _DIRECTORY, dir_fd=current)
            os.close(current)
            current = deeper
        yield current
    finally:
        os.close(current)


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=_PIECE_BYTES) as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
