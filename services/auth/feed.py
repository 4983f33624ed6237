"""The trust feed: one reader of the primary, any number of watchers.

Each tick is one read of the primary. What it finds goes to this process's own
trust state and to every watcher; if nothing changed, the read itself is the news,
a heartbeat. No read, no message: watchers then count their staleness.

If this fails: revocations arrive late. Watchers refuse sensitive methods after
30 s without news and every method after one token life.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from casemate.clock import Clock
from casemate.errors import CasemateError, Unavailable
from casemate.gate.core.trust import TrustSnapshot, TrustState
from services.auth.store.news import News, NewsReader
from services.auth.store.table import Alarms

HEARTBEAT: Final = timedelta(seconds=2)
SWEEP: Final = timedelta(seconds=30)
"""How often every row is read and verified again, so that a row changed by SQL is noticed before a restart."""

_BACKLOG: Final = 256
"""Unsent messages after which a watcher is cut off; it resumes with a read of its own."""

_log = logging.getLogger(__name__)


class TrustPublisher:
    """Keeps the trust state of this process and tells watchers; lives in one event loop.

    Args:
        reader: reads the primary.
        state: this process's own trust state.
        alarms: told of rows that differ without a change.
        after_change: awaited after news that is more than a heartbeat was told; tried again until it succeeds.
        looked: told after every attempt how long ago the primary was read.
        clients_changed: told which clients changed, before anybody else hears of the news; None: any may have.
        sweep_too: awaited with the time in every sweep, for what no watcher is told of.
        clock: for the age of reads and the expiry of records.
        heartbeat: longest time between two reads.
        sweep: time between two reads of everything.
    """

    def __init__(
        self,
        *,
        reader: NewsReader,
        state: TrustState,
        alarms: Alarms,
        after_change: Callable[[], Awaitable[None]],
        looked: Callable[[timedelta], None],
        clock: Clock,
        heartbeat: timedelta = HEARTBEAT,
        sweep: timedelta = SWEEP,
        clients_changed: Callable[[frozenset[str] | None], None] = lambda _client_ids: None,
        sweep_too: Callable[[datetime], Awaitable[None]] | None = None,
    ) -> None:
        self._clients_changed = clients_changed
        self._sweep_too = sweep_too
        self._reader = reader
        self._state = state
        self._alarms = alarms
        self._after_change = after_change
        self._looked = looked
        self._clock = clock
        self._heartbeat_s = heartbeat.total_seconds()
        self._sweep_s = sweep.total_seconds()
        self._next_sweep = clock.monotonic() + self._sweep_s
        self._woken = asyncio.Event()
        self._watchers: set[asyncio.Queue[News | None]] = set()
        self._closed = False
        self._silent = False
        self._behind = False

    def wake(self) -> None:
        """Has the next read happen now."""
        self._woken.set()

    async def run(self) -> None:
        """Reads and tells until cancelled."""
        while True:
            await self._tick()
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._woken.wait()

    async def refresh(self) -> None:
        """One read of the primary, applied and told.

        Raises:
            Unavailable: the primary could not be read; nothing was told.
        """
        self._woken.clear()
        present = self._state.current
        news = await self._reader.read(epoch=present.epoch, sequence=present.sequence)
        self._apply(news)
        # Told before it is acted on: whoever verifies knows a new key before anything is signed with it.
        for watcher in tuple(self._watchers):
            self._offer(watcher, news)
        self._behind = self._behind or not news.is_heartbeat
        if self._behind:
            await self._after_change()
            self._behind = False

    async def sweep(self) -> None:
        """Reads every row again and sounds the alarm for what was done to rows past the application."""
        await self._reader.forget_expired(self._clock.now() - timedelta(hours=1))
        if self._sweep_too is not None:
            await self._sweep_too(self._clock.now())
        news = await self._reader.read(whole=True)
        present = self._state.current
        if news.snapshot is None or (news.epoch, news.sequence) != (present.epoch, present.sequence):
            return
        found = await asyncio.to_thread(unexplained, present, news.snapshot, now=self._clock.now())
        for table, key in found:
            self._alarms.sound("a row differs from what was told, without a change", table=table, key=key)

    async def watch(self, *, epoch: str, sequence: int) -> AsyncGenerator[News, None]:
        """News since a number of an epoch, beginning with one read made for this watcher.

        Ends when the publisher closes.

        Raises:
            Unavailable: the primary cannot be read, the watcher is too slow, or the publisher is closed.
        """
        if self._closed:
            raise Unavailable("auth is stopping")
        queue: asyncio.Queue[News | None] = asyncio.Queue(_BACKLOG)
        # Registered before the read, so that nothing falls between the two.
        self._watchers.add(queue)
        try:
            first = await self._reader.read(epoch=epoch, sequence=sequence)
            yield first
            told = first.sequence
            while (news := await queue.get()) is not None:
                if news.snapshot is None and news.sequence < told:
                    continue  # read before our own first read
                if news.snapshot is None and news.sequence == told:
                    news = replace(news, since=told, changes=())  # told already: only a heartbeat
                yield news
                told = news.sequence
            if queue not in self._watchers and not self._closed:
                raise Unavailable("the watcher is too slow")
        finally:
            self._watchers.discard(queue)

    async def everything(self) -> News:
        """All that is trusted, by a read of its own.

        Raises:
            Unavailable: the primary cannot be read.
        """
        return await self._reader.read(whole=True)

    def close(self) -> None:
        """Ends all watches and refuses new ones."""
        self._closed = True
        for watcher in tuple(self._watchers):
            self._end(watcher)

    async def _tick(self) -> None:
        try:
            await self.refresh()
            if self._clock.monotonic() >= self._next_sweep:
                self._next_sweep = self._clock.monotonic() + self._sweep_s
                await self.sweep()
        except CasemateError as error:
            if not self._silent:
                _log.error("the primary cannot be read; the trust feed is silent: %s", error)  # a state, not a fault
            self._silent = True
            self._clients_changed(None)
        except Exception:  # noqa: BLE001  # whatever it is, the feed must speak again as soon as it can
            _log.exception("the trust feed failed; it goes on with the next read")
            self._silent = True
            self._clients_changed(None)
        else:
            if self._silent:
                _log.warning("the trust feed speaks again")
            self._silent = False
        self._looked(self._state.staleness(self._clock))

    def _apply(self, news: News) -> None:
        if news.snapshot is not None or news.clients:
            self._clients_changed(None if news.snapshot is not None else news.clients)
        if news.snapshot is not None:
            self._state.apply_snapshot(news.snapshot)
        elif news.sequence > self._state.current.sequence:
            self._state.apply_delta(news.changes, epoch=news.epoch, sequence=news.sequence)
        self._state.heard(news.read_at)

    def _offer(self, watcher: asyncio.Queue[News | None], news: News) -> None:
        if watcher.full():
            self._watchers.discard(watcher)
            self._end(watcher)
        else:
            watcher.put_nowait(news)

    def _end(self, watcher: asyncio.Queue[News | None]) -> None:
        while watcher.full():
            watcher.get_nowait()
        watcher.put_nowait(None)


def unexplained(known: TrustSnapshot, read: TrustSnapshot, *, now: datetime) -> list[tuple[str, str]]:
    """Table and key of live records that differ between two looks at one sequence number.

    Every change has a number, so a difference without one was made past the
    application: a row deleted, put back as it once was, or made unreadable.
    """
    pairs: tuple[tuple[str, Mapping[Any, object], Mapping[Any, object]], ...] = (
        ("token_key", known.keys, read.keys),
        ("revocation", known.revocations.by_id, read.revocations.by_id),
        ("access_grant", known.grants.by_id, read.grants.by_id),
        ("signer", known.signers, read.signers),
        ("release", known.releases, read.releases),
    )
    found = []
    for table, before, after in pairs:
        for key in sorted(before.keys() | after.keys()):
            one, other = before.get(key), after.get(key)
            if one != other and not (_has_ended(one, now) and _has_ended(other, now)):
                found.append((table, key if isinstance(key, str) else "/".join(key)))
    return found


def _has_ended(record: object, now: datetime) -> bool:
    if record is None:
        return True
    expires_at = getattr(record, "expires_at", None)
    return expires_at is not None and expires_at <= now
