"""The messages of a client's stream, as a handler of the synchronous server reads them.

grpcio's own iterator blocks until its peer speaks, and nothing else can wake it.
A stream whose token was revoked has to end although its peer is silent, so a
thread reads for the handler, one message at a time and only when asked: flow
control stays as it is.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Incoming:
    """An iterator over parsed and authorized messages; ends by the error that `deny` was given."""

    def __init__(self, requests: Iterator[bytes], take: Callable[[bytes], Any]) -> None:
        self._requests = requests
        self._take = take
        self._wanted = threading.Semaphore(0)
        self._inbox: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._closed = False
        self._begun = False
        self._reader: threading.Thread | None = None

    def __iter__(self) -> Incoming:
        return self

    def __next__(self) -> Any:  # noqa: ANN401  # any message
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="gate-incoming", daemon=True)
            self._reader.start()
        self._wanted.release()
        arrived = self._inbox.get()
        if arrived is None:
            self._inbox.put(None)  # a second ask gets the same end
            raise StopIteration
        if isinstance(arrived, Exception):
            self._inbox.put(arrived)
            raise arrived
        return self._take(arrived)

    @property
    def awaits_first(self) -> bool:
        """Whether the handler waits, and nothing has come yet."""
        return self._reader is not None and not self._begun

    def deny(self, error: Exception) -> None:
        """Wakes the handler with this error, from any thread."""
        self._inbox.put(error)

    def close(self) -> None:
        """Lets the reader go; grpcio ends its wait when the call ends."""
        self._closed = True
        self._wanted.release()

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed:
                return
            try:
                message = next(self._requests)
                self._begun = True
                self._inbox.put(message)
            except StopIteration:
                self._begun = True
                self._inbox.put(None)
                return
            except Exception as error:  # noqa: BLE001  # raised again where the handler reads
                self._inbox.put(error)
                return
