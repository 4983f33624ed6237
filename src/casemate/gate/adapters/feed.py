"""Follows the trust feed of auth and keeps a trust state current.

If this fails: news stops, and the state's age says so. Sensitive methods then
refuse after 30 s, the others after the configured staleness; nothing fails open.
"""

from __future__ import annotations

import logging
import random
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import grpc

from casemate.auth.v1 import trust_service_pb2, trust_service_pb2_grpc
from casemate.errors import InvalidRequest
from casemate.gate.adapters.records import delta_from_message, snapshot_from_message
from casemate.gate.core.trust import TrustGap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.clock import Clock
    from casemate.gate.core.trust import TrustState

_LOGGER = logging.getLogger(__name__)

FIRST_WAIT: Final = timedelta(milliseconds=100)
LONGEST_WAIT: Final = timedelta(seconds=5)
SILENCE: Final = timedelta(seconds=10)
"""Five heartbeats of auth."""


class TrustFeed:
    """One background thread that watches trust and, whatever happens, goes on trying.

    Args:
        channel: to auth; whose name it verifies is the channel's business.
        state: what is kept current. This feed is its only writer.
        clock: for the age of news.
        first_wait: before the first new attempt; doubles up to `longest_wait`, with jitter.
        longest_wait: between attempts.
        silence: after this long without a word an open stream is given up: a peer that hangs, or a
            network that swallows, would otherwise keep us from asking another replica.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        state: TrustState,
        clock: Clock,
        *,
        first_wait: timedelta = FIRST_WAIT,
        longest_wait: timedelta = LONGEST_WAIT,
        silence: timedelta = SILENCE,
    ) -> None:
        self._stub = trust_service_pb2_grpc.TrustServiceStub(channel)
        self._state = state
        self._clock = clock
        self._first_wait_s = first_wait.total_seconds()
        self._longest_wait_s = longest_wait.total_seconds()
        self._silence_s = silence.total_seconds()
        self._spoke_at: float | None = None
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._call: Iterator[trust_service_pb2.WatchTrustResponse] | None = None
        self._resync = False
        self._parts: trust_service_pb2.WatchTrustResponse | None = None
        self._thread = threading.Thread(target=self._run, name="trust-feed", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="trust-feed-silence", daemon=True)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()
        self._listener.start()

    def close(self) -> None:
        """Stops following and waits for the thread, at most five seconds."""
        with self._lock:
            self._closed.set()
            _cancel(self._call)
        if self._thread.is_alive():
            self._thread.join(timeout=5)
            self._listener.join(timeout=5)

    def wait_ready(self, timeout: timedelta) -> bool:
        """Waits for the first snapshot; False if it did not come in time."""
        return self._ready.wait(timeout.total_seconds())

    def _run(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                for news in self._watch():
                    self._apply(news)
                    failures = 0
                failures += 1  # auth ended the stream: it restarts, or its connection aged out
            except (TrustGap, InvalidRequest) as problem:
                _LOGGER.warning("trust feed: asking for everything again: %s", problem)
                self._resync = True
                failures += 1
            except grpc.RpcError as error:
                if not self._closed.is_set():
                    _LOGGER.info("trust feed: lost: %s", getattr(error, "code", lambda: None)())
                failures += 1
            except Exception:
                _LOGGER.exception("trust feed: news could not be applied; asking for everything again")
                self._resync = True
                failures += 1
            finally:
                self._spoke_at = None
                _cancel(self._call)
            self._closed.wait(self._wait_s(failures))

    def _watch(self) -> Iterator[trust_service_pb2.WatchTrustResponse]:
        present = self._state.current
        request = trust_service_pb2.WatchTrustRequest()
        if not self._resync:
            request.epoch, request.sequence = present.epoch, present.sequence
        with self._lock:
            if self._closed.is_set():
                return
            self._spoke_at = self._clock.monotonic()
            self._parts = None
            self._call = self._stub.WatchTrust(request)
        for news in self._call:
            self._spoke_at = self._clock.monotonic()
            yield news

    def _apply(self, news: trust_service_pb2.WatchTrustResponse) -> None:
        # The age counts from the read of the primary, not from when the news reached us.
        read_at = self._clock.monotonic() - max(0.0, news.read_age.ToTimedelta().total_seconds())
        match news.WhichOneof("news"):
            case "snapshot":
                whole = self._gather(news)
                if whole is None:
                    return  # nothing is known of it, not even its age, before the last part
                self._state.apply_snapshot(snapshot_from_message(whole, epoch=news.epoch, sequence=news.sequence))
                self._resync = False
            case "delta":
                changes = delta_from_message(news.delta)
                self._state.apply_delta(changes, epoch=news.epoch, sequence=news.sequence)
            case "heartbeat":
                self._state.confirm(epoch=news.epoch, sequence=news.sequence)
            case _:
                raise InvalidRequest("news of a kind that this version does not know")
        self._state.heard(read_at)
        self._ready.set()

    def _gather(self, news: trust_service_pb2.WatchTrustResponse) -> trust_service_pb2.TrustSnapshot | None:
        """The whole snapshot, once the last of its parts has come."""
        parts = self._parts
        if parts is None:
            parts = news
        elif (parts.epoch, parts.sequence) != (news.epoch, news.sequence):
            raise InvalidRequest("parts of two snapshots")
        else:
            parts.snapshot.MergeFrom(news.snapshot)
        self._parts = parts if news.snapshot.more else None
        return None if news.snapshot.more else parts.snapshot

    def _listen(self) -> None:
        """Cuts a stream that is open and says nothing; the following thread then asks again."""
        while not self._closed.wait(self._silence_s / 4):
            spoke_at = self._spoke_at
            if spoke_at is not None and self._clock.monotonic() - spoke_at > self._silence_s:
                _LOGGER.warning("trust feed: silent for too long; asking again")
                self._spoke_at = None
                _cancel(self._call)

    def _wait_s(self, failures: int) -> float:
        longest = min(self._longest_wait_s, self._first_wait_s * 2 ** min(failures - 1, 16)) if failures else 0.0
        # Full jitter: replicas that lost one auth must not come back at one moment.
        return random.uniform(0.0, longest)  # noqa: S311  # spreads load, guards nothing


def _cancel(call: object) -> None:
    cancel = getattr(call, "cancel", None)
    if cancel is not None:
        cancel()
