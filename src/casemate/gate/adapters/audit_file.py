"""Audit events in a file, written beside the calls and never in their way.

Two rooms wait for the disk: one for denials, which a flood may fill, and one kept
for allowed calls that have to be traced. When the second cannot be written, such
calls are refused; denials that do not fit are counted, and the count is written.

What is on disk when: a batch with an allowed call in it is synced (fsync) at
once, others within a second. A crash of the process loses what still waited, a
few milliseconds' worth; a crash of the machine also up to a second of denials.
Every minute, and at the end, the chain's head is noted in `FILE.heads` and in the
log: a log that is kept elsewhere shows when the file's end was cut off.

If this fails: events are missing, and their number is written into the file as
soon as that works again; or lines were changed afterwards, and the chain shows where.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from casemate.errors import ConfigurationError, Unavailable
from casemate.gate.adapters.audit_lines import HEADS_SUFFIX, Head, line_after, members_of, read_head, verify_chain
from casemate.gate.adapters.audit_repeats import Repeats

if TYPE_CHECKING:
    from pathlib import Path

    from casemate.gate.core.audit import AuditEvent

__all__ = ["AuditFile", "verify_chain"]

_LOGGER = logging.getLogger(__name__)

_BACKLOG: Final = 10_000
_RESERVED: Final = 4_096
_UNDER_WAY: Final = 1_024
"""Audited calls that may run at once, each of which will want room: as many as a server of ours takes."""
_BATCH: Final = 256
_SYNC_EVERY_S: Final = 1.0
_GATHER_S: Final = 0.005
"""For which events gather before they are written: under load one sync then serves many. Nobody waits for it."""
_LONGEST_LINE: Final = 16_384
_KEPT: Final = "audit: the file is down; kept, and to be written later: %s"
CHECKPOINT_EVERY: Final = timedelta(minutes=1)


class AuditFile:
    """Appends events to one file, from a thread of its own; callers never wait for the disk.

    Each line carries the SHA-256 of the line before it and its own over all other
    members, so `verify_file` finds a changed, removed or inserted line.

    Args:
        path: the file; made with mode 0600. An existing one is continued.
        backlog: denials that may wait. More are dropped and counted, and the count is written.
        reserved: room for events of allowed calls; such calls are refused before it is full.
        checkpoint_every: how often the head is noted.

    Raises:
        ConfigurationError: the file cannot be opened, or its last line is none of ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        backlog: int = _BACKLOG,
        reserved: int = _RESERVED,
        checkpoint_every: timedelta = CHECKPOINT_EVERY,
    ) -> None:
        self._path = path
        self._backlog = backlog
        self._reserved = reserved
        self._checkpoint_every_s = checkpoint_every.total_seconds()
        self._denials: deque[AuditEvent] = deque()
        self._allowed: deque[AuditEvent] = deque()
        self._repeats = Repeats()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._lost = 0
        self._down = False
        self._closing = threading.Event()
        self._unsynced = False
        self._synced_at = self._noted_at = time.monotonic()
        self._file, self._head = _open(path)
        self._noted = self._head
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that were dropped and are not yet accounted for in the file."""
        return self._lost

    @property
    def head(self) -> Head:
        """The last line that was written."""
        return self._head

    def record(self, event: AuditEvent) -> None:
        """Takes an event for the file. Never waits and never raises."""
        line, room = (self._denials, self._backlog) if event.decision == "denied" else (self._allowed, self._reserved)
        if len(line) < room:
            line.append(event)
        else:
            with self._lock:
                self._lost += 1
        if self._down and event.decision == "allowed":
            # Should this process end before the file works again, the log is what is left of it.
            _LOGGER.warning(_KEPT, json.dumps(members_of(event)))
        if not self._wake.is_set():
            self._wake.set()

    def require_writable(self, *, may_wait: bool = False) -> None:
        """Refuses while the file cannot be written, or writes so slowly that its reserved room fills.

        Args:
            may_wait: the call only takes rights away: while the file is down it goes on, and its event waits
                in the reserved room and stands in the log.

        Raises:
            Unavailable: see above.
        """
        if (self._down and not may_wait) or len(self._allowed) + _UNDER_WAY > self._reserved:
            raise Unavailable("the audit cannot be written, and this call must be")

    def close(self) -> None:
        """Writes what waits, notes the head, and closes the file."""
        if not self._file.closed:
            self._closing.set()
            self._wake.set()
            self._thread.join()
            self._file.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            # A file that failed is tried once a second, however many events come meanwhile.
            (self._closing if self._down else self._wake).wait(_SYNC_EVERY_S)
            self._closing.wait(_GATHER_S)
            self._wake.clear()
            self._write_all()
        self._write_all()
        self._write([], self._repeats.due(monotonic=None), must_sync=True)
        self._checkpoint()

    def _write_all(self) -> None:
        while self._write_batch() and (self._allowed or self._denials):
            pass

    def _write_batch(self) -> bool:
        """Writes what waits, up to a batch; an event of an allowed call leaves its room when it is written."""
        now = time.monotonic()
        allowed = [self._allowed[place] for place in range(min(len(self._allowed), _BATCH))]
        denied: list[dict[str, Any]] = []
        for _ in range(min(len(self._denials), _BATCH)):
            denied += self._repeats.take(self._denials.popleft(), monotonic=now)
        denied += self._repeats.due(monotonic=now)
        written = self._write([members_of(event) for event in allowed], denied, must_sync=bool(allowed))
        if written:
            for _ in allowed:
                self._allowed.popleft()
            if now - self._noted_at >= self._checkpoint_every_s:
                self._noted_at = now
                self._checkpoint()
        return written

    def _write(self, allowed: list[dict[str, Any]], denied: list[dict[str, Any]], *, must_sync: bool) -> bool:
        """Appends records and syncs when that is due; whether it worked. Denials are lost if not."""
        records = [*allowed, *denied]
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            records.append({"at": datetime.now(UTC).isoformat(), "lost": lost})
        head, lines = self._head, []
        for record in records:
            line, head = line_after(head, record)
            lines.append(line)
        try:
            if lines:
                self._append(b"".join(lines))
                self._head, self._unsynced = head, True
                lost, denied = 0, []
            self._sync(must_sync)
        except OSError:
            with self._lock:
                self._lost += lost + sum(record.get("count", 1) for record in denied)
            if not self._down:
                _LOGGER.exception("audit: the file cannot be written; calls that must be audited are refused")
                for record in allowed:
                    _LOGGER.warning(_KEPT, json.dumps(record))
            self._down = True
            return False
        if self._down:
            _LOGGER.warning("audit: the file can be written again")
        self._down = False
        return True

    def _append(self, content: bytes) -> None:
        """Writes all of it or nothing: half a line would break the chain for good."""
        size = self._file.seek(0, os.SEEK_END)
        left = memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(size)
            raise

    def _sync(self, must: bool) -> None:  # noqa: FBT001  # of this class alone
        now = time.monotonic()
        # A file that failed is tried again although nothing is new: somebody may have made room.
        if self._down or (self._unsynced and (must or now - self._synced_at >= _SYNC_EVERY_S)):
            os.fsync(self._file.fileno())
            self._unsynced, self._synced_at = False, now

    def _checkpoint(self) -> None:
        head = self._head
        if head == self._noted:
            return
        line = json.dumps({"at": datetime.now(UTC).isoformat(), "number": head.number, "sha256": head.digest})
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with os.fdopen(os.open(self._path.with_name(self._path.name + HEADS_SUFFIX), flags, 0o600), "wb") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            _LOGGER.exception("audit: the head of the chain could not be noted")
            return
        self._noted = head
        _LOGGER.info("audit: line %d of %s is %s", head.number, self._path.name, head.digest)


def _open(path: Path) -> tuple[BinaryIO, Head]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = cast(
            "BinaryIO", os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+", buffering=0)
        )
    except OSError as error:
        raise ConfigurationError(f"audit file {path} cannot be opened: {error.strerror}") from None
    try:
        return file, _last_head(file, path)
    except BaseException:
        file.close()
        raise


def _last_head(file: BinaryIO, path: Path) -> Head:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return Head()
    file.seek(max(0, size - _LONGEST_LINE))
    ended, _, torn = file.read().rpartition(b"\n")
    if torn:
        # A crash in the middle of a line: it was never whole, so it is cut off.
        file.truncate(size - len(torn))
    if not ended:
        if torn and size <= _LONGEST_LINE:
            return Head()
        raise ConfigurationError(f"audit file {path} holds something else")
    try:
        return read_head(ended.rpartition(b"\n")[2])
    except ValueError:
        raise ConfigurationError(f"audit file {path} does not end in a line of the audit") from None
