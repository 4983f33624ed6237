"""Several processes of the service on one port, and the supervisor that keeps them running.

Each worker is a whole service: its own gate, trust feed, models and audit file.
The kernel spreads new connections over them (SO_REUSEPORT). A worker that dies,
whose main thread stops, whose run takes longer than any may, or that outgrows its
memory is replaced; the others go on. What it was running then is remembered, see `board`.
What an operator has one worker load or unload by rpc, that worker alone does; what all
have to follow comes by the feed.

If this fails: fewer workers serve, or none. Nothing is decided here.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import ConfigurationError
from services.inference.board import SupervisorBoard
from services.inference.last_words import LastWords
from services.inference.worker_link import Frames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOOK_S = 0.2
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_CONFIGURATION_EXIT = 1
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """When a worker is replaced.

    Attributes:
        start: it has not said that it lives for so long after its start.
        silence: likewise later.
        run: a run of a model has been under way for so long.
        memory_bytes: it has more in memory; 0 for no limit.
        drain: how long a worker that is told to end may take.
    """

    start: timedelta = timedelta(seconds=60)
    silence: timedelta = timedelta(seconds=10)
    run: timedelta = timedelta(seconds=60)
    memory_bytes: int = 0
    drain: timedelta = timedelta(seconds=15)


class Worker:
    """One process, and what it last said."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], index: int, board: int) -> None:
        ours, theirs = socket.socketpair()
        self.last_words = LastWords()
        with theirs:
            inherited = (theirs.fileno(), board, self.last_words.descriptor)
            self._process = subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
                [*command, str(index), *map(str, inherited)],
                env=dict(environment),
                pass_fds=inherited,
            )
        self.started = self.heard = time.monotonic()
        self.beats = 0
        self.ready = False
        self.oldest_run = 0.0
        self._frames = Frames(ours)
        self._pages: list[str] = []
        self._answered = threading.Condition()
        threading.Thread(target=self._listen, name=f"worker-{index}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code, once it has one."""
        return self._process.poll()

    def memory_bytes(self) -> int:
        """What it has in memory."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def metrics(self, timeout: float) -> str:
        """Its page of metrics; empty when it does not answer."""
        with self._answered:
            self._pages.clear()
            if not self._frames.send({"ask": "metrics"}):
                return ""
            self._answered.wait_for(lambda: bool(self._pages), timeout)
            return self._pages[-1] if self._pages else ""

    def end(self, number: int) -> None:
        """Sends it a signal."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> bool:
        """Whether it ended within so many seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Ends the line to it."""
        self._frames.close()
        self.last_words.close()

    def _listen(self) -> None:
        while (message := self._frames.receive()) is not None:
            if "beat" in message:
                self.heard = time.monotonic()
                self.ready, self.oldest_run = bool(message["beat"]["ready"]), float(message["beat"]["oldest_run"])
                self.beats += 1
            elif "metrics" in message:
                with self._answered:
                    self._pages.append(str(message["metrics"]))
                    self._answered.notify_all()


class Supervisor:
    """Keeps so many workers running until it is told to end.

    Args:
        count: how many.
        command: what starts one; its index and three descriptors are appended.
        environment: of the workers.
        limits: when one is replaced.
    """

    def __init__(
        self, *, count: int, command: Sequence[str], environment: Mapping[str, str], limits: WorkerLimits
    ) -> None:
        self._command = command
        self._environment = environment
        self._limits = limits
        self._board = SupervisorBoard(count)
        self._leaving: dict[int, float] = {}
        self._waits = [0.0] * count
        self._due = [0.0] * count
        self._served = False
        self.workers: list[Worker | None] = [None] * count
        self.replaced: dict[str, int] = {}

    @property
    def ready(self) -> bool:
        """Whether every worker serves."""
        return all(worker is not None and worker.ready for worker in self.workers)

    def run(self, ended: threading.Event, announce: Callable[[], None]) -> None:
        """Starts the workers and replaces them until `ended`; then drains them. `announce` when all serve at first.

        Raises:
            ConfigurationError: a worker cannot start as configured, and none ever served.
        """
        try:
            while not ended.is_set():
                for index in range(len(self.workers)):
                    self._tend(index)
                self._board.forget()
                if self.ready and not self._served:
                    self._served = True
                    announce()
                ended.wait(_LOOK_S)
        finally:
            self._drain()

    def _tend(self, index: int) -> None:
        worker = self.workers[index]
        if worker is None:
            if time.monotonic() >= self._due[index]:
                self.workers[index] = self._start(index)
            return
        leaves = index in self._leaving
        if worker.ended() is not None:
            self._bury(index, worker, counted=leaves)
        elif leaves:
            if time.monotonic() > self._leaving[index]:
                worker.end(signal.SIGKILL)
        elif (why := self._wrong(worker)) is not None:
            _LOGGER.error("worker %d (process %d) %s: replaced", index, worker.pid, why)
            self._count(why)
            if why == "outgrew its memory":
                # It still serves: it ends when it has answered. Its successor needs its place on the board, and its
                # audit file, and so starts after it.
                worker.end(signal.SIGTERM)
                self._leaving[index] = time.monotonic() + self._limits.drain.total_seconds()
                return
            worker.end(signal.SIGKILL)
            worker.wait(self._limits.drain.total_seconds())
            self._bury(index, worker, counted=True, outlasted=self._outlasted(why))

    def _wrong(self, worker: Worker) -> str | None:
        patience = self._limits.silence if worker.beats else self._limits.start
        if time.monotonic() - worker.heard > patience.total_seconds():
            return "hangs"
        if worker.oldest_run > self._limits.run.total_seconds():
            return "runs for too long"
        if 0 < self._limits.memory_bytes < worker.memory_bytes():
            return "outgrew its memory"
        return None

    def _outlasted(self, why: str) -> float:
        """How long a run or load may have been under way that is not to blame."""
        return (self._limits.run if why == "runs for too long" else self._limits.silence).total_seconds()

    def _bury(self, index: int, worker: Worker, *, counted: bool = False, outlasted: float | None = None) -> None:
        code = worker.ended()
        cause, thread = worker.last_words.read()
        worker.close()
        self._leaving.pop(index, None)
        if code == _CONFIGURATION_EXIT and not self._served and not worker.ready:
            raise ConfigurationError("a worker does not start as configured; its own line says why")
        running = self._board.died(index, thread=thread, outlasted=outlasted)
        if not counted:
            self._count("died")
            _LOGGER.error(
                "worker %d ended by itself (%s) with %d runs and loads under way: replaced",
                index,
                cause or code,
                running,
            )
        self._waits[index] = 0.0 if worker.ready else min(_LONGEST_WAIT_S, self._waits[index] * 2 or _FIRST_WAIT_S)
        self._due[index] = time.monotonic() + self._waits[index]
        self.workers[index] = None

    def _count(self, why: str) -> None:
        self.replaced[why] = self.replaced.get(why, 0) + 1

    def _start(self, index: int) -> Worker:
        worker = Worker(self._command, self._environment, index, self._board.descriptor)
        _LOGGER.info("worker %d started as process %d", index, worker.pid)
        return worker

    def _drain(self) -> None:
        left = [worker for worker in self.workers if worker is not None]
        for worker in left:
            worker.end(signal.SIGTERM)
        until = time.monotonic() + self._limits.drain.total_seconds()
        for worker in left:
            if not worker.wait(max(0.0, until - time.monotonic())):
                worker.end(signal.SIGKILL)
                worker.wait(1)
            worker.close()
        self._board.close()


def reserve(address: str) -> tuple[socket.socket, str]:
    """Holds the port for the workers without taking connections; the socket, and the address with its number.

    Raises:
        ConfigurationError: it cannot be bound.
    """
    host, _, port = address.rpartition(":")
    held: socket.socket | None = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(place)
    except OSError:
        if held is not None:
            held.close()
        raise ConfigurationError(f"{address} cannot be bound: the port is in use or the address is not ours") from None
    return held, f"{host}:{held.getsockname()[1]}"


def worker_command() -> list[str]:
    """What starts a worker of this service."""
    return [sys.executable, "-m", "services.inference", "--worker"]
