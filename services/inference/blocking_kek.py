"""The key-encryption key for threads: providers are async, this server is not.

One event loop in one daemon thread serves all callers, so that a provider over
the network keeps its connections.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, TypeVar

from casemate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import timedelta

    from casemate.sealing.kek import KeyEncryptionKey
    from casemate.sealing.keys import DataKey, KeyContext, WrappedKey

T = TypeVar("T")


class KekThread:
    """The thread and the event loop in which a key-encryption key lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._beginning = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="kek", daemon=True)
        self._thread.start()

    def run(self, call: Coroutine[Any, Any, T], *, timeout: timedelta) -> T:
        """The result of a coroutine that runs there.

        Raises:
            Unavailable: it took longer than `timeout`, or the loop has ended.
        """
        with self._beginning:
            if self._ended:  # what a load asks that outlasted its service
                call.close()
                raise Unavailable("the service has ended")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result(timeout.total_seconds())
        except FutureTimeout as error:
            future.cancel()
            raise Unavailable("the key-encryption key did not answer in time") from error
        except FutureCancelled as error:
            raise Unavailable("the service has ended") from error

    def close(self) -> None:
        """Ends the loop, and with `Unavailable` the calls under way; those that come later end likewise."""
        with self._beginning:
            self._ended = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_all())


async def _cancel_all() -> None:
    """Begins what was asked last and had no turn yet, and cancels it with the rest."""
    await asyncio.sleep(0)
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


class BlockingKek:
    """A `KeyEncryptionKey` that blocks its caller, for at most `timeout`.

    Args:
        kek: the key.
        timeout: the longest that a caller waits.
        thread: where the key was opened, closed by whoever made it; one of its own if not given.
    """

    def __init__(self, kek: KeyEncryptionKey, *, timeout: timedelta, thread: KekThread | None = None) -> None:
        self._kek = kek
        self._timeout = timeout
        self._thread = thread or KekThread()
        self._owns_thread = thread is None

    def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """A fresh data key, and the same wrapped.

        Raises:
            Unavailable: the provider did not answer in time.
        """
        return self._wait(self._kek.generate_data_key(context))

    def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """The data key inside `wrapped`.

        Raises:
            StoredDataUnreadable: it was not wrapped by this key for this context.
            Unavailable: the provider did not answer in time.
        """
        return self._wait(self._kek.unwrap(wrapped, context))

    def run(self, call: Coroutine[Any, Any, T], *, timeout: timedelta | None = None) -> T:
        """The result of a coroutine that runs where the key lives.

        Raises:
            Unavailable: it took too long.
        """
        return self._thread.run(call, timeout=timeout or self._timeout)

    def close(self) -> None:
        """Ends its own thread, if it has one."""
        if self._owns_thread:
            self._thread.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return self.run(call)
