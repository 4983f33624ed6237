"""The only maker of channels: mutual TLS to one named service, rotated when our certificate renews.

grpcio does not reload a client's certificate (grpc/grpc#41779). A
`RotatingChannel` holds a plain channel per certificate, hands new calls to the
newest that is connected, and closes the one before when its last call ends.

If this fails: calls go on with the old certificate until it expires, and are
refused then. A server that is not the named service is never spoken to.
"""

# ruff: noqa: ANN401  # serializers are whatever the generated code passes
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

import grpc

from casemate.errors import Unavailable
from casemate.transport.calls import Generation, StreamStream, StreamUnary, UnaryStream, UnaryUnary
from casemate.transport.certificates import CertificatePair, PairSource
from casemate.transport.options import CHANNEL_OPTIONS, DEFAULT_MAX_MESSAGE_BYTES, Option, message_options
from casemate.transport.service_config import idempotent_methods, service_config

__all__ = ["RotatingChannel", "idempotent_methods"]

_LOGGER = logging.getLogger(__name__)

DEFAULT_DEADLINE = timedelta(seconds=30)

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"

Metadata = Sequence[tuple[str, str | bytes]]
Connectivity = Callable[[grpc.ChannelConnectivity], None]


class RotatingChannel(grpc.Channel):
    """A channel for generated stubs. Synchronous; safe from any thread.

    Spreads calls over all addresses of the target, skips servers whose health
    says no, tries idempotent methods again on UNAVAILABLE, uses no HTTP proxy,
    and gives unary calls a deadline if the caller gives none. Streams have none:
    keepalive finds a dead peer.

    Args:
        target: where to dial, in gRPC's syntax: `host:port`, `dns:///name:port`, `ipv4:a:1,b:2`.
        service_name: whose certificate is accepted: `auth.casemate.internal`, or `auth` for
            that name in the trust domain of our own certificate.
        source: our certificate, and the roots the server is judged by; a `PinnedPair` never rotates.
        idempotent_methods: full names that may be repeated; see `idempotent_methods`.
        default_deadline: of unary calls.
        max_message_bytes: the largest message, either way.
        call_metadata: metadata for each call, given the pair that the call will be made with: a token
            bound to another certificate than the connection's would be refused.
    """

    def __init__(
        self,
        *,
        target: str,
        service_name: str,
        source: PairSource,
        idempotent_methods: frozenset[str] = frozenset(),
        default_deadline: timedelta = DEFAULT_DEADLINE,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        call_metadata: Callable[[CertificatePair], Metadata] | None = None,
    ) -> None:
        self._target = target
        self._service_name = service_name
        self._options = (
            *CHANNEL_OPTIONS,
            *message_options(max_message_bytes),
            ("grpc.service_config", service_config(idempotent_methods)),
        )
        self._deadline_seconds = default_deadline.total_seconds()
        self._call_metadata = call_metadata
        self._lock = threading.RLock()
        self._rotated: dict[object, Callable[[CertificatePair], None]] = {}
        self._connectivity: dict[Connectivity, bool] = {}
        self._closed = False
        self._retired: list[Generation] = []
        self._candidate: Generation | None = None
        self._current = self._dial(source.current, 1)
        self._end_subscription = source.subscribe(self._renewed)
        # A renewal between the two lines above was told to nobody.
        if source.current is not self._current.pair:
            self._renewed(source.current)

    @property
    def generation(self) -> int:
        """Grows by one each time that new calls move to a new certificate; begins at 1."""
        return self._current.number

    @property
    def pair(self) -> CertificatePair:
        """The certificate that new calls are made with."""
        return self._current.pair

    def on_rotation(self, callback: Callable[[CertificatePair], None]) -> Callable[[], None]:
        """Has `callback` called after new calls moved to a new certificate, from a thread of its own.

        (`subscribe` is taken: in a `grpc.Channel` it is about connectivity.)

        Returns:
            A function that ends the subscription.
        """
        key = object()
        with self._lock:
            self._rotated[key] = callback

        def end() -> None:
            with self._lock:
                self._rotated.pop(key, None)

        return end

    def close(self) -> None:
        """Ends all calls, old certificates' included. Twice is once."""
        self._end_subscription()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            generations = [self._current, *self._retired]
            if self._candidate is not None:
                generations.append(self._candidate)
        for generation in generations:
            generation.close()

    def subscribe(self, callback: Connectivity, try_to_connect: bool | None = False) -> None:  # noqa: FBT001, FBT002
        """Connectivity, as in `grpc.Channel`; follows the rotation."""
        with self._lock:
            self._connectivity[callback] = bool(try_to_connect)
            self._current.channel.subscribe(callback, try_to_connect=bool(try_to_connect))

    def unsubscribe(self, callback: Connectivity) -> None:
        """Ends a connectivity subscription."""
        with self._lock:
            self._connectivity.pop(callback, None)
            self._current.channel.unsubscribe(callback)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002
    ) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        """As in `grpc.Channel`."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return UnaryUnary(self._begin, lambda channel: channel.unary_unary(*arguments), self._deadline_seconds)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002
    ) -> grpc.UnaryStreamMultiCallable[Any, Any]:
        """As in `grpc.Channel`."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return UnaryStream(self._begin, lambda channel: channel.unary_stream(*arguments), None)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002
    ) -> grpc.StreamUnaryMultiCallable[Any, Any]:
        """As in `grpc.Channel`."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return StreamUnary(self._begin, lambda channel: channel.stream_unary(*arguments), None)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,  # noqa: FBT001, FBT002
    ) -> grpc.StreamStreamMultiCallable[Any, Any]:
        """As in `grpc.Channel`."""
        arguments = (method, request_serializer, response_deserializer, _registered_method)
        return StreamStream(self._begin, lambda channel: channel.stream_stream(*arguments), None)

    def __enter__(self) -> RotatingChannel:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> tuple[Generation, Metadata]:
        """A generation that stays open for one call more, and the metadata that fits its certificate."""
        with self._lock:
            if self._closed:
                raise Unavailable("the channel is closed")
            # Under the lock that a rotation takes: what is current is not retired, hence not closed.
            generation = self._current
            generation.enter()
        if self._call_metadata is None:
            return generation, ()
        try:
            return generation, self._call_metadata(generation.pair)
        except BaseException:
            generation.leave()
            raise

    def _dial(self, pair: CertificatePair, number: int) -> Generation:
        name = self._service_name if "." in self._service_name else f"{self._service_name}.{pair.trust_domain}"
        options: tuple[Option, ...] = (*self._options, ("grpc.ssl_target_name_override", name))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=pair.roots_pem,
            private_key=pair.private_key_pem.reveal(),
            certificate_chain=pair.certificate_chain_pem,
        )
        return Generation(number=number, pair=pair, channel=grpc.secure_channel(self._target, credentials, options))

    def _renewed(self, pair: CertificatePair) -> None:
        """Dials with the new certificate; calls move once that connection stands."""
        with self._lock:
            if self._closed:
                return
            candidate = self._dial(pair, self._current.number + 1)
            overtaken, self._candidate = self._candidate, candidate
        if overtaken is not None:
            overtaken.retire()

        # Any answer proves the connection. A connectivity subscription would do, but its polling thread
        # fails when the channel is closed under it.
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = candidate.channel.unary_unary(_HEALTH_CHECK)
        check = ask.future(b"", wait_for_ready=True)
        check.add_done_callback(lambda done: self._connected(candidate, done))
        if self._current.pair.not_after <= datetime.now(UTC):
            # The old certificate opens no door any more: nothing is lost by moving before the new one is connected.
            self._adopt(candidate)

    def _connected(self, candidate: Generation, check: Any) -> None:
        if check.code() is not grpc.StatusCode.CANCELLED:
            # Not on this thread: it delivers the events of the channel that subscribers are about to use.
            threading.Thread(target=self._adopt, args=(candidate,), name="channel-rotation", daemon=True).start()

    def _adopt(self, candidate: Generation) -> None:
        with self._lock:
            if self._closed or self._candidate is not candidate:
                return
            old, self._current, self._candidate = self._current, candidate, None
            for listener, try_to_connect in self._connectivity.items():
                old.channel.unsubscribe(listener)
                candidate.channel.subscribe(listener, try_to_connect=try_to_connect)
            self._retired = [each for each in self._retired if not each.closed]
            self._retired.append(old)
            callbacks = tuple(self._rotated.values())
        old.retire()
        _LOGGER.info(
            "channel to %s moved to the certificate valid until %s", self._service_name, candidate.pair.not_after
        )
        for callback in callbacks:
            try:
                callback(candidate.pair)
            except Exception:
                # One subscriber's fault must not keep the others from hearing.
                _LOGGER.exception("a subscriber failed to follow the channel's rotation")
