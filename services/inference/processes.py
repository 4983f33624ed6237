"""Which process this is: the service alone, the supervisor of several workers, or one of those.

    python -m services.inference               # as many as CASEMATE_INFERENCE_WORKERS says: one
    python -m services.inference --workers 4

A worker is started by its supervisor, with its index and three descriptors.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING

from casemate.json_log import log_to_stderr
from casemate.settings import load_settings
from casemate.transport.certificates import CertificateSource
from casemate.transport.metrics import MetricsServer
from services.inference.app import COMPONENT, run
from services.inference.board import WorkerBoard
from services.inference.last_words import leave_last_words
from services.inference.seat import READY, Seat
from services.inference.settings import InferenceSettings
from services.inference.worker_metrics import WorkerMetrics
from services.inference.workers import Supervisor, WorkerLimits, reserve, worker_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MIB = 1024 * 1024
_WORKERS = "CASEMATE_INFERENCE_WORKERS"
_LISTEN = "CASEMATE_INFERENCE_LISTEN"
_LOGGER = logging.getLogger(__name__)


def main(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> None:
    """Runs until SIGTERM or SIGINT, then drains.

    Raises:
        ConfigurationError: the process cannot start as configured.
        SystemExit: the arguments are none of ours.
    """
    asked = _parse(arguments)
    if asked.workers is not None:
        environment = {**environment, _WORKERS: asked.workers}
    log_to_stderr()
    settings = load_settings(InferenceSettings, environment, component=COMPONENT)
    if settings.serving.unsafe_division and asked.worker is None:
        _LOGGER.warning("CASEMATE_INFERENCE_UNSAFE_DIVISION is set: callers of some models may end a process")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with contextlib.ExitStack() as stack:
        if asked.worker is not None:
            index, descriptor, board, words = asked.worker
            leave_last_words(words)
            count = settings.workers.count
            seat = Seat(index=index, count=count, board=WorkerBoard(board, index), descriptor=descriptor)
            run(settings, stack, ended, seat=seat)
        elif settings.workers.count > 1:
            _supervise(settings, environment, stack, ended)
        else:
            run(settings, stack, ended)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.inference", description="The inference service.")
    parser.add_argument("--workers", metavar="N", help=f"processes on the one port, instead of {_WORKERS}")
    parser.add_argument("--worker", nargs=4, type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _supervise(
    settings: InferenceSettings, environment: Mapping[str, str], stack: contextlib.ExitStack, ended: threading.Event
) -> None:
    """Holds the port, keeps the workers running, and shows one page of metrics for all of them."""
    held, address = reserve(settings.listen.address)
    stack.enter_context(contextlib.closing(held))
    supervisor = Supervisor(
        count=settings.workers.count,
        command=worker_command(),
        environment={**environment, _LISTEN: address},
        limits=WorkerLimits(
            silence=settings.workers.silence,
            run=settings.workers.longest_run,
            memory_bytes=settings.workers.memory_mib * _MIB,
        ),
    )
    metrics = WorkerMetrics(COMPONENT, supervisor)
    source = CertificateSource(settings.identity.directory, metrics=metrics)
    source.start()
    stack.callback(source.close)
    page = MetricsServer(metrics, source, settings.listen.metrics_address)
    stack.callback(page.stop)
    page.start()
    port = int(address.rpartition(":")[2])
    supervisor.run(ended, lambda: _LOGGER.info(READY, port, page.port))
