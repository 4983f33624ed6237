"""Whether the service may be called: looks, and tells the health service."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.errors import CasemateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from casemate.clock import Clock
    from casemate.gate.core.trust import TrustState
    from casemate.transport.health import HealthState
    from casemate.transport.metrics import Metrics

_LOGGER = logging.getLogger(__name__)
_PERIOD = timedelta(seconds=1)
_PATIENCE = timedelta(seconds=2)


class HealthProbe:
    """Says SERVING only while the trust feed is fresh and the databases answer.

    Args:
        health: told about every service.
        services: their names; the whole server is always among them.
        ping: returns if the databases answer.
        trust: whose news must be fresh.
        staleness: how old they may be.
        metrics: told `trust_staleness_seconds`.
        clock: time.
    """

    def __init__(
        self,
        *,
        health: HealthState,
        services: Iterable[str],
        ping: Callable[[], Awaitable[None]],
        trust: TrustState,
        staleness: timedelta,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._health = health
        self._services = ("", *services)
        self._ping = ping
        self._trust = trust
        self._limit = staleness
        self._metrics = metrics
        self._clock = clock
        self._serving: bool | None = None

    async def watch(self) -> None:
        """Looks every second, for ever."""
        while True:
            await asyncio.sleep(_PERIOD.total_seconds())
            await self.look()

    async def look(self) -> None:
        """Looks once and tells."""
        staleness = self._trust.staleness(self._clock)
        self._metrics.set_value("trust_staleness_seconds", staleness.total_seconds())
        missing = "the trust feed is silent" if staleness > self._limit else await self._missing_database()
        serving = missing is None
        if serving is not self._serving:
            _LOGGER.info("serving") if serving else _LOGGER.warning("not serving: %s", missing)
        self._serving = serving
        for service in self._services:
            self._health.set_serving(service, serving=serving)

    async def _missing_database(self) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE.total_seconds()):
                await self._ping()
        except (CasemateError, TimeoutError) as error:
            return f"a database does not answer: {error}"
        return None
