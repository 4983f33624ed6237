"""Shared memory of a supervisor and its workers: which inputs are being run, and which ended a worker.

Each worker writes the digests of inputs into its own part before a run and
clears them after it. When a worker dies, its supervisor finds there what it was
running. Such an input runs alone from then on; when that ends a worker too, it
is refused by all. Both for ten minutes: one that is asked often may have been
under way by chance.

If this fails: one input can end worker after worker, each of which is replaced.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from services.inference.tensors import Array

DIGEST = 16
_SLOTS = 512
_ENTRIES = 200
_ENTRY = DIGEST + 1
_HEADER = struct.Struct("<II")  # version, entries
_TABLE = 4096
_PART = _SLOTS * DIGEST
_EMPTY = bytes(DIGEST)
_REFUSED_AT = 2
_WHOLE = 1024 * 1024
REMEMBERED_S = 600.0
"""For how long an input is held to have ended a worker."""


def board_bytes(workers: int) -> int:
    """The size of the memory for so many workers."""
    return _TABLE + workers * _PART


class SupervisorBoard:
    """The supervisor's side, which makes the memory.

    Args:
        workers: how many.
        now: the monotonic clock, in seconds.
    """

    def __init__(self, workers: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.descriptor = os.memfd_create("casemate-board", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, board_bytes(workers))
        self._memory = mmap.mmap(self.descriptor, board_bytes(workers))
        self._deaths: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # how many, and when the last was
        self._version = 0

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()
        os.close(self.descriptor)

    def died(self, worker: int) -> int:
        """Notes what a dead worker was running, and clears its part; how many inputs that were."""
        start = _TABLE + worker * _PART
        part = self._memory[start : start + _PART]
        self._memory[start : start + _PART] = bytes(_PART)
        running = {part[place : place + DIGEST] for place in range(0, _PART, DIGEST)} - {_EMPTY}
        for digest in running:
            self._deaths[digest] = (min(self._deaths.pop(digest, (0, 0.0))[0] + 1, 255), self._now())
        while len(self._deaths) > _ENTRIES:
            self._deaths.popitem(last=False)
        if running:
            self._tell()
        return len(running)

    def forget(self) -> None:
        """Lets go of inputs that ended no worker for ten minutes."""
        gone = [digest for digest, (_, when) in self._deaths.items() if self._now() - when > REMEMBERED_S]
        for digest in gone:
            del self._deaths[digest]
        if gone:
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        table = b"".join(digest + bytes([deaths]) for digest, (deaths, _) in self._deaths.items())
        self._memory[_HEADER.size : _HEADER.size + len(table)] = table
        self._memory[: _HEADER.size] = _HEADER.pack(self._version, len(self._deaths))


class WorkerBoard:
    """One worker's side."""

    def __init__(self, descriptor: int, worker: int) -> None:
        self._memory = mmap.mmap(descriptor, 0)
        self._start = _TABLE + worker * _PART
        self._free = deque(range(_SLOTS))
        self._lock = threading.Lock()
        self._version = 0
        self._deaths: dict[bytes, int] = {}

    def mark(self, inputs: Mapping[str, Array], key: bytes) -> tuple[bytes, bool]:
        """The digest of an input for the model and tenant that `key` names, and whether it must run alone.

        Raises:
            InvalidRequest: it ended two workers.
        """
        digest = _digest(inputs, key)
        deaths = self._known().get(digest, 0)
        if deaths >= _REFUSED_AT:
            raise InvalidRequest(
                "an input that ended two workers",
                violations=(FieldViolation("inputs", "ended the model's process twice, and is not run again"),),
            )
        return digest, deaths > 0

    def begin(self, digests: Sequence[bytes]) -> list[int]:
        """Writes what is about to run; give the answer to `end`."""
        with self._lock:
            places = [self._free.popleft() for _ in digests if self._free]
        for place, digest in zip(places, digests, strict=False):
            start = self._start + place * DIGEST
            self._memory[start : start + DIGEST] = digest
        return places

    def end(self, places: list[int]) -> None:
        """Clears what has run."""
        for place in places:
            start = self._start + place * DIGEST
            self._memory[start : start + DIGEST] = _EMPTY
        self._free.extend(places)

    def _known(self) -> dict[bytes, int]:
        version, entries = _HEADER.unpack_from(self._memory)
        if version != self._version:
            table = self._memory[_HEADER.size : _HEADER.size + entries * _ENTRY]
            self._deaths = {
                table[place : place + DIGEST]: table[place + DIGEST] for place in range(0, len(table), _ENTRY)
            }
            self._version = version
        return self._deaths


def _digest(inputs: Mapping[str, Array], key: bytes) -> bytes:
    hashed = hashlib.blake2b(key, digest_size=DIGEST)
    for name in sorted(inputs):
        array = inputs[name]
        hashed.update(f"{name}\0{array.dtype}{array.shape}".encode())
        if array.dtype == object:
            hashed.update(repr(array.tolist()).encode())
        elif array.nbytes <= _WHOLE:
            hashed.update(array.tobytes())
        else:  # the ends: hashing all of a large tensor would take longer than many a run
            flat = array.reshape(-1)
            hashed.update(flat[: _WHOLE // 8].tobytes() + flat[-_WHOLE // 8 :].tobytes())
    return hashed.digest()
