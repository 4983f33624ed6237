"""The line between a supervisor and one worker: frames of JSON over a socket pair.

A worker tells that it lives, and answers for its metrics; when its supervisor
is gone, it ends.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTH = struct.Struct("<I")
_LARGEST = 64 * 1024 * 1024
_LOGGER = logging.getLogger(__name__)


class Frames:
    """Messages over a stream socket; safe to send from several threads."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> bool:
        """Sends one message; False when nobody is at the other end."""
        data = json.dumps(message).encode()
        try:
            with self._sending:
                self._line.sendall(_LENGTH.pack(len(data)) + data)
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when nobody is at the other end."""
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        [length] = _LENGTH.unpack(head)
        data = self._exactly(length) if length <= _LARGEST else None
        if data is None:
            return None
        message: dict[str, Any] = json.loads(data)
        return message

    def close(self) -> None:
        """Ends the line; who waits at either end is told."""
        try:
            self._line.shutdown(socket.SHUT_RDWR)
        except OSError:
            _LOGGER.debug("a line of a worker was closed already")
        self._line.close()

    def _exactly(self, length: int) -> bytes | None:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self._line.recv(min(length - len(data), 1 << 20))
            except OSError:
                return None
            if not piece:
                return None
            data += piece
        return bytes(data)


class WorkerLink:
    """A worker's end.

    Args:
        descriptor: of the socket, inherited from the supervisor.
        metrics: the worker's page.
        ended: called when the supervisor is gone.
    """

    def __init__(self, descriptor: int, *, metrics: Callable[[], bytes], ended: Callable[[], None]) -> None:
        self._frames = Frames(socket.socket(fileno=descriptor))
        self._metrics = metrics
        self._ended = ended
        self._thread = threading.Thread(target=self._answer, name="worker-link", daemon=True)
        self._thread.start()

    def beat(self, *, ready: bool, oldest_run: float) -> None:
        """Tells that this worker's main thread lives."""
        self._frames.send({"beat": {"ready": ready, "oldest_run": oldest_run}})

    def _answer(self) -> None:
        while self._frames.receive() is not None:
            self._frames.send({"metrics": self._metrics().decode()})
        self._ended()
