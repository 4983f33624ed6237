"""A local key ring that is read again when its file changes, so that a rotation needs no restart.

Before each use one `stat`, a microsecond, tells whether the file is another one.
Rings are replaced by a rename, so what is read is the old ring or the new one.

If this fails: the process goes on with the ring that it has. It cannot open what
another replica wrapped since the rotation, and says so by refusing; it wraps under
the old version, which every replica opens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from casemate.errors import ConfigurationError
from casemate.sealing.kek import KekState
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing

_LOGGER = logging.getLogger(__name__)

_Mark: TypeAlias = tuple[int, ...] | None
_NONE_REFUSED: Final[_Mark] = ()


def _do_nothing() -> None:
    pass


class WatchedKeyRing:
    """The ring in a file, as it is now. Implements `kek.KeyEncryptionKey`.

    A file that is gone, unreadable, of another key, older than the ring in use, or with
    another key under a number in use changes nothing: the ring in use stays, the log says
    so, and it is counted once. It is tried again at each use.

    Args:
        path: the ring's file.
        reload_failed: called once for every file that was refused.

    Raises:
        ConfigurationError: as `LocalKeyRing.load`, at the first reading.
    """

    __slots__ = ("_mark", "_path", "_refused", "_reload_failed", "_ring")

    def __init__(self, path: Path, *, reload_failed: Callable[[], None] = _do_nothing) -> None:
        self._path = path
        self._reload_failed = reload_failed
        # The mark first: a file that is replaced in between is then read again.
        self._mark = _mark_of(path)
        self._ring = LocalKeyRing.load(path)
        self._refused: _Mark = _NONE_REFUSED

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`."""
        return await self._current().generate_data_key(context)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        return await self._current().wrap(key, context)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        return await self._current().unwrap(wrapped, context)

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        return await self._current().rewrap(wrapped, context)

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`."""
        return await self._current().state()

    def _current(self) -> LocalKeyRing:
        mark = _mark_of(self._path)
        if mark != self._mark:
            self._reload(mark)
        return self._ring

    def _reload(self, mark: _Mark) -> None:
        """Tries at each use until it succeeds: what kept the file from being read may have passed."""
        try:
            ring = LocalKeyRing.load(self._path)
            ring.require_follows(self._ring)
        except ConfigurationError as error:
            if mark != self._refused:
                self._refused = mark
                self._reload_failed()
                _LOGGER.critical("the key-encryption key in use stays, %s is refused: %s", self._path, error)
            return
        self._ring, self._mark, self._refused = ring, mark, _NONE_REFUSED
        state = ring.describe()
        _LOGGER.info("%s is at version %d now", state.kek_id, state.current_version)


def _mark_of(path: Path) -> _Mark:
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of change and the owner too: a chown alone makes a file readable.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_uid
