"""Calls over a channel that may be replaced between two of them.

A generation is one plain channel with one certificate. It counts its running
calls, so that it can be closed when it was replaced and the last one ended.
"""

# ruff: noqa: ANN401  # messages and call objects are whatever the generated code says
from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from casemate.transport.certificates import CertificatePair

Begin = Callable[[], tuple["Generation", Sequence[tuple[str, str | bytes]]]]


class Generation:
    """A plain channel, the certificate it presents, and how many calls run on it."""

    def __init__(self, *, number: int, pair: CertificatePair, channel: grpc.Channel) -> None:
        self.number = number
        self.pair = pair
        self.channel = channel
        self._lock = threading.Lock()
        self._calls = 0
        self._retired = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the channel was closed."""
        return self._closed

    def enter(self) -> None:
        """Counts a call in."""
        with self._lock:
            self._calls += 1

    def leave(self) -> None:
        """Counts a call out."""
        with self._lock:
            self._calls -= 1
        self._close_if_done()

    def retire(self) -> None:
        """Closes the channel once no call runs on it."""
        with self._lock:
            self._retired = True
        self._close_if_done()

    def close(self) -> None:
        """Closes the channel now, which ends its calls."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.channel.close()

    def _close_if_done(self) -> None:
        with self._lock:
            if self._closed or not self._retired or self._calls:
                return
            self._closed = True
        # `leave` may run on the thread that delivers the channel's events: closing there could wait for itself.
        threading.Thread(target=self.channel.close, name="channel-drain", daemon=True).start()


class _Rotating:
    """What the four kinds of call share."""

    def __init__(self, begin: Begin, make: Callable[[Any], Any], deadline_seconds: float | None) -> None:
        self._begin = begin
        self._make = make
        self._deadline_seconds = deadline_seconds
        self._made: tuple[Generation, Any] | None = None

    def _prepare(self, options: dict[str, Any]) -> tuple[Generation, Any]:
        """Enters a generation and completes the options; gives the generation's own callable for the method."""
        generation, metadata = self._begin()
        made = self._made
        if made is None or made[0] is not generation:
            made = (generation, self._make(generation.channel))
            self._made = made
        if options.get("timeout") is None:
            options["timeout"] = self._deadline_seconds
        if metadata:
            options["metadata"] = (*(options.get("metadata") or ()), *metadata)
        return generation, made[1]

    def _wait(self, attribute: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        request, options = _bound(arguments, options)
        generation, inner = self._prepare(options)
        try:
            return getattr(inner, attribute)(request, **options)
        finally:
            generation.leave()

    def _run(self, attribute: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        request, options = _bound(arguments, options)
        generation, inner = self._prepare(options)
        try:
            call = getattr(inner, attribute)(request, **options)
        except BaseException:
            generation.leave()
            raise
        if not call.add_callback(generation.leave):
            generation.leave()
        return call


def _bound(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The request, and the rest by name, however they were passed."""
    names = ("request", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
    bound = {**dict(zip(names, arguments, strict=False)), **options}
    if "request_iterator" in bound:
        bound["request"] = bound.pop("request_iterator")
    return bound.pop("request"), bound


class UnaryUnary(_Rotating, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # not generic at run time
    """One request, one response."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The response."""
        return self._wait("__call__", arguments, options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        """The response, and the call with its metadata."""
        return self._wait("with_call", arguments, options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        """The call, running."""
        return self._run("future", arguments, options)


class StreamUnary(_Rotating, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    """Many requests, one response."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The response."""
        return self._wait("__call__", arguments, options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        """The response, and the call with its metadata."""
        return self._wait("with_call", arguments, options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        """The call, running."""
        return self._run("future", arguments, options)


class UnaryStream(_Rotating, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    """One request, many responses."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The call, running: an iterator of responses."""
        return self._run("__call__", arguments, options)


class StreamStream(_Rotating, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    """Many requests, many responses."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The call, running: an iterator of responses."""
        return self._run("__call__", arguments, options)
