"""A backup's folder while it is written: complete under its name, or not there.

Files are written below a hidden name, each digested as it passes and forced to the
disk. The manifest comes last, then one rename. What a crash leaves is hidden, has no
manifest, and is no backup to any reader.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from casemate.backup.manifest import MANIFEST, Manifest, Part, open_stored
from casemate.errors import ConfigurationError, StoredDataUnreadable

PIECE_BYTES: Final = 1024 * 1024
"""Read, digested and written at a time: all the memory that a part takes."""

_PARTIAL: Final = ".partial-"


class WritingFolder:
    """Takes the parts of one backup. Made by `write_backup`."""

    def __init__(self, path: Path, *, passed: Callable[[int], None]) -> None:
        self._path = path
        self._passed = passed
        self.parts: list[Part] = []

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[bytes], None]]:
        """Gives a function that writes the next bytes of a part; the part is kept if the block ends well."""
        file = self._path / name
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0

        def write(piece: bytes) -> None:
            nonlocal size
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
            self._passed(len(piece))

        with _open_new(file) as stream:
            yield write
            stream.flush()
            os.fsync(stream.fileno())
        self.parts.append(Part(path=name, size=size, sha256=digest.hexdigest()))

    def copy(self, name: str, source: Callable[[], IO[bytes]]) -> None:
        """Copies what `source` opens as a part.

        Raises:
            FileNotFoundError: it is gone.
        """
        with source() as stream, self.part(name) as write:
            while piece := stream.read(PIECE_BYTES):
                write(piece)

    async def stream(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Writes a part as it comes."""
        with self.part(name) as write:
            async for piece in pieces:
                write(piece)

    def forget(self, prefix: str) -> None:
        """Drops the parts below a prefix: what they were copied from went away meanwhile."""
        shutil.rmtree(self._path / prefix, ignore_errors=True)
        self.parts = [part for part in self.parts if not part.path.startswith(f"{prefix}/")]


def reader(path: Path) -> Callable[[], IO[bytes]]:
    """What opens a file for reading."""
    return lambda: path.open("rb")


@contextmanager
def write_backup(folder: Path, *, passed: Callable[[int], None]) -> Iterator[WritingFolder]:
    """A folder that becomes `folder` by `finish`; whatever else happens, nothing of that name appears.

    Raises:
        ConfigurationError: something is there already.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already")
    partial = folder.with_name(f"{_PARTIAL}{folder.name}")
    partial.mkdir(mode=0o700, parents=True)
    try:
        yield WritingFolder(partial, passed=passed)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def finish(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, and gives the folder its name: from now on it is a backup."""
    partial = folder.with_name(f"{_PARTIAL}{folder.name}")
    with _open_new(partial / MANIFEST) as stream:
        stream.write(manifest.to_bytes())
        stream.flush()
        os.fsync(stream.fileno())
    for directory in sorted({partial, *(path for path in partial.rglob("*") if path.is_dir())}):
        _sync(directory)
    partial.rename(folder)
    _sync(folder.parent)


def read_part(folder: Path, part: Part, *, passed: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The pieces of a part. The last one comes only when all of them are known to be those of the manifest.

    Raises:
        StoredDataUnreadable: it is missing, cut short, longer, or altered.
    """
    digest, size, held = hashlib.sha256(), 0, b""
    try:
        with open_stored(folder / part.path) as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                passed(len(piece))
                if held:
                    yield held
                held = piece
    except OSError as error:
        raise StoredDataUnreadable(f"{part.path} of the backup cannot be read: {error.strerror}") from error
    if size != part.size:
        raise StoredDataUnreadable(f"{part.path} of the backup has {size} bytes, and {part.size} were written")
    if digest.hexdigest() != part.sha256:
        raise StoredDataUnreadable(f"{part.path} of the backup was altered")
    if held:
        yield held


def _open_new(file: Path) -> IO[bytes]:
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
