"""Audit events as lines of JSON, each bound to the one before it.

If this fails: events are missing, and their number is written into the file as
soon as that works again; or lines were changed afterwards, and the chain shows
where. Cutting off the end is not seen by the file alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import threading
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import ConfigurationError
from casemate.gate.core.audit import AuditEvent

if TYPE_CHECKING:
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)

_FIRST: Final = "0" * 64
_BACKLOG: Final = 10_000
_BATCH: Final = 256
_LONGEST_LINE: Final = 16_384
_NAMES: Final = tuple(each.name for each in fields(AuditEvent))


class AuditFile:
    """Appends events to one file, from a thread of its own; callers never wait for the disk.

    Each line carries the SHA-256 of the line before it and its own over all other
    members, so `verify_chain` finds a changed, removed or inserted line.

    Args:
        path: the file; made with mode 0600. An existing one is continued.
        backlog: events that may wait. More are dropped and counted, and the count is written.

    Raises:
        ConfigurationError: the file cannot be opened, or its last line is none of ours.
    """

    def __init__(self, path: Path, *, backlog: int = _BACKLOG) -> None:
        self._path = path
        self._queue: queue.Queue[AuditEvent | None] = queue.Queue(backlog)
        self._lock = threading.Lock()
        self._lost = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"audit file {path} cannot be opened: {error.strerror}") from None
        try:
            self._previous = _last_digest(self._file, path)
        except BaseException:
            self._file.close()
            raise
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that were dropped and are not yet accounted for in the file."""
        return self._lost

    def record(self, event: AuditEvent) -> None:
        """Takes an event for the file. Never waits and never raises."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            with self._lock:
                self._lost += 1

    def close(self) -> None:
        """Writes what waits, and closes the file."""
        if not self._file.closed:
            self._queue.put(None)
            self._thread.join()
            self._file.close()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            ended = None in batch
            self._write([event for event in batch if event is not None])

    def _write(self, events: list[AuditEvent]) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
        previous, lines = self._previous, []
        records = [_members(event) for event in events]
        if lost:
            records.append({"at": datetime.now(UTC).isoformat(), "lost": lost})
        for record in records:
            line, previous = _line(record, previous)
            lines.append(line)
        try:
            self._append(b"".join(lines))
        except OSError:
            with self._lock:
                self._lost += lost + len(events)
            _LOGGER.exception("audit: %d events could not be written", len(events))
        else:
            self._previous = previous

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


def verify_chain(lines: list[bytes]) -> int:
    """Checks that each line follows from the one before it; the number of lines.

    Raises:
        ValueError: names the first line, counted from 1, that does not.
    """
    previous = _FIRST
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            digest = record.pop("sha256")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"line {number} is not a line of the audit") from None
        if record.get("previous") != previous or _digest(record) != digest:
            raise ValueError(f"line {number} does not follow from the one before it")
        previous = digest
    return len(lines)


def _members(event: AuditEvent) -> dict[str, Any]:
    members = {name: value for name in _NAMES if (value := getattr(event, name)) is not None}
    members["at"] = event.at.isoformat()
    return members


def _line(record: dict[str, Any], previous: str) -> tuple[bytes, str]:
    bound = {**record, "previous": previous}
    digest = _digest(bound)
    return _canonical({**bound, "sha256": digest}) + b"\n", digest


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _last_digest(file: Any, path: Path) -> str:  # noqa: ANN401  # an unbuffered file
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return _FIRST
    file.seek(max(0, size - _LONGEST_LINE))
    ended, _, torn = file.read().rpartition(b"\n")
    if torn:
        # A crash in the middle of a line: it was never whole, so it is cut off.
        file.truncate(size - len(torn))
    if not ended:
        if torn and size <= _LONGEST_LINE:
            return _FIRST
        raise ConfigurationError(f"audit file {path} holds something else")
    try:
        digest = json.loads(ended.rpartition(b"\n")[2])["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"audit file {path} does not end in a line of the audit") from None
    return str(digest)
