"""One worker's place among several: what it shares with the others, and what is its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from services.inference.worker_link import WorkerLink

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casemate.gate.core.quota import Shares
    from services.inference.board import WorkerBoard


READY = "ready: rpcs on port %d, metrics on port %d"
_LOGGER = logging.getLogger(__name__)


class Tell(Protocol):
    """Who is told, every half second or so, how the service is."""

    def __call__(self, *, ready: bool, oldest_run: float) -> None:
        """Whether it serves, and for how many seconds its oldest run has been under way."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place among `count` workers.

    Attributes:
        index: which of them, from 0.
        count: how many there are.
        board: where it notes what it runs.
        descriptor: the line to its supervisor.
    """

    index: int
    count: int
    board: WorkerBoard
    descriptor: int

    def own(self, file: Path) -> Path:
        """This worker's file in place of a lone process's: `audit.jsonl` becomes `audit.0.jsonl`."""
        return file.with_name(f"{file.stem}.{self.index}{file.suffix}")

    def link(self, metrics: Callable[[], bytes], ended: Callable[[], None]) -> Tell:
        """What tells the supervisor that this worker lives; it also answers for the metrics.

        Args:
            metrics: this worker's page.
            ended: called when the supervisor is gone.
        """
        return WorkerLink(self.descriptor, metrics=metrics, ended=ended).beat


class Announcement:
    """What a lone process tells: once, to its log, that the service is ready."""

    def __init__(self, port: int, metrics_port: int) -> None:
        self._ports: tuple[int, int] | None = (port, metrics_port)

    def __call__(self, *, ready: bool, oldest_run: float) -> None:  # noqa: ARG002  # nobody watches a lone process
        """Says it when it is `ready` for the first time."""
        if ready and self._ports is not None:
            _LOGGER.info(READY, *self._ports)
            self._ports = None


def share_out(shares: Shares, among: int) -> Shares:
    """Each worker's part of the quotas, so that all of them together give no more than one process would.

    A caller with one connection is served by one worker, and has that part alone.
    """
    return replace(
        shares,
        places=None if shares.places is None else max(1, shares.places // among),
        caller_concurrency=max(1, shares.caller_concurrency // among),
        tenant_concurrency=max(1, shares.tenant_concurrency // among),
        calls_per_second=shares.calls_per_second / among,
        burst=max(1, shares.burst // among),
        tenant_calls_per_second=shares.tenant_calls_per_second / among,
        tenant_burst=max(1, shares.tenant_burst // among),
        resource_calls_per_second=shares.resource_calls_per_second / among,
        resource_burst=max(1, shares.resource_burst // among),
    )
