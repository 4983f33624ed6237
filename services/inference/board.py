"""Shared memory of a supervisor and its workers: what is being run, and what ended a worker.

Each worker writes into its own part, before a run and before a load, which model it is of, the digest of the
input, the thread and the time, and clears it afterwards. When a worker dies, its supervisor finds there what it was
doing. Such an input runs alone from then on; when that ends a worker too, it
is refused by all. Both for ten minutes: one that is asked often may have been
under way by chance.

A caller can make new inputs for ever. So a model is refused as well, and not loaded, once it has ended two workers: for
ten minutes, by all. That takes proof that it was this model and none that ran beside it: the thread in
which the process died (`last_words`), or a run so long that the worker was ended for it. Of the latter it takes four.

If this fails: one input, or one model, can end worker after worker, each of which is replaced.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import struct
import threading
import time
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from casemate.errors import FailedPrecondition, FieldViolation, InvalidRequest, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from services.inference.tensors import Array

DIGEST = 16
_SLOTS = 512
_ENTRIES = 200
_ENTRY = DIGEST + 1
_HEADER = struct.Struct("<II")  # version, entries
_TABLE = 4096
_SLOT = struct.Struct(f"<{DIGEST}s{DIGEST}sQd")  # model, input, thread, and when it began
_PART = _SLOTS * _SLOT.size
_EMPTY = bytes(_SLOT.size)
_REFUSED_AT = 2
_RESTS_AT = 4
_OF_A_DEATH, _OF_A_LONG_RUN = 2, 1
"""How much of that a model is charged with."""
_WHOLE = 1024 * 1024
REMEMBERED_S = 600.0
"""For how long an input, or a model, is held to have ended a worker."""

_RESTS = FieldViolation("model_name", "ended the service's processes, and rests for ten minutes")
_LOGGER = logging.getLogger(__name__)


class Running(NamedTuple):
    """What a worker was doing when it ended."""

    model: bytes
    input: bytes
    thread: int
    began: float


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

    def died(self, worker: int, *, thread: int | None = None, outlasted: float | None = None) -> int:
        """Notes what a dead worker was doing, and clears its part; how many inputs and loads that were.

        Args:
            worker: which one.
            thread: in which it died, where that is known: what ran beside is then under no suspicion.
            outlasted: for how long a run may take, where it was ended for one that took longer.
        """
        start = _TABLE + worker * _PART
        part = self._memory[start : start + _PART]
        self._memory[start : start + _PART] = bytes(_PART)
        slots = {part[place : place + _SLOT.size] for place in range(0, _PART, _SLOT.size)} - {_EMPTY}
        running = [Running(*_SLOT.unpack(slot)) for slot in slots]
        suspects = running if thread is None else [each for each in running if each.thread == thread]
        for digest in {each.input for each in suspects} - {bytes(DIGEST)}:
            self._charge(digest, 1)
        if thread is not None:
            self._charge_models(suspects, _OF_A_DEATH)
        elif outlasted is not None:
            self._charge_models([each for each in running if self._now() - each.began > outlasted], _OF_A_LONG_RUN)
        while len(self._deaths) > _ENTRIES:
            self._deaths.popitem(last=False)
        if running:
            self._tell()
        return len(running)

    def _charge_models(self, guilty: Sequence[Running], share: int) -> None:
        for model in {each.model for each in guilty}:
            charged = self._charge(model, share)
            if charged >= _RESTS_AT:
                _LOGGER.error("a model has ended workers time and again, and rests for ten minutes: %s", model.hex())

    def _charge(self, digest: bytes, share: int) -> int:
        charged = min(self._deaths.pop(digest, (0, 0.0))[0] + share, 255)
        self._deaths[digest] = (charged, self._now())
        return charged

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
    """One worker's side.

    Args:
        descriptor: of the memory.
        worker: which part is its own.
        now: the monotonic clock, in seconds, which is the supervisor's too.
    """

    def __init__(self, descriptor: int, worker: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._memory = mmap.mmap(descriptor, 0)
        self._start = _TABLE + worker * _PART
        self._free = deque(range(_SLOTS))
        self._lock = threading.Lock()
        self._version = 0
        self._deaths: dict[bytes, int] = {}

    def mark(self, inputs: Mapping[str, Array], key: bytes) -> tuple[bytes, bool]:
        """What stands for an input while it runs, and whether it must run alone.

        Args:
            inputs: of the request.
            key: names the model by its first 32 bytes, and the tenant by what follows.

        Raises:
            InvalidRequest: it ended two workers.
            FailedPrecondition: reason MODEL_REFUSED: its model did.
        """
        model = key[:DIGEST]
        self.require_trustworthy(key)
        digest = _digest(inputs, key)
        deaths = self._known().get(digest, 0)
        if deaths >= _REFUSED_AT:
            raise InvalidRequest(
                "an input that ended two workers",
                violations=(FieldViolation("inputs", "ended the model's process twice, and is not run again"),),
            )
        return model + digest, deaths > 0

    def rests(self, key: bytes) -> bool:
        """Whether the model that `key` names has ended too many workers."""
        return self._known().get(key[:DIGEST], 0) >= _RESTS_AT

    def require_trustworthy(self, key: bytes) -> None:
        """Returns when the model that `key` names has not ended too many workers.

        Raises:
            FailedPrecondition: reason MODEL_REFUSED.
        """
        if self.rests(key):
            raise FailedPrecondition(
                "a model that ended two workers", reason=Reason.MODEL_REFUSED, violations=(_RESTS,)
            )

    @contextmanager
    def loading(self, key: bytes) -> Iterator[None]:
        """While the model that `key` names is being prepared in this thread, which may end the process as a run may.

        Raises:
            FailedPrecondition: reason MODEL_REFUSED: it ended two workers.
        """
        self.require_trustworthy(key)
        places = self.begin([key[:DIGEST] + bytes(DIGEST)])
        try:
            yield
        finally:
            self.end(places)

    def begin(self, marks: Sequence[bytes]) -> list[int]:
        """Writes what is about to run in this thread; give the answer to `end`."""
        with self._lock:
            places = [self._free.popleft() for _ in marks if self._free]
        thread, now = threading.get_ident(), self._now()
        for place, mark in zip(places, marks, strict=False):
            start = self._start + place * _SLOT.size
            _SLOT.pack_into(self._memory, start, mark[:DIGEST], mark[DIGEST:], thread, now)
        return places

    def end(self, places: list[int]) -> None:
        """Clears what has run."""
        for place in places:
            start = self._start + place * _SLOT.size
            self._memory[start : start + _SLOT.size] = _EMPTY
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
