"""What every server and channel of ours is set to. Each value names what it answers.

If this fails: one peer can take connections, memory or threads from the others;
no data is opened by it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

Option = tuple[str, Any]

DEFAULT_MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024

MAXIMUM_CONCURRENT_CALLS: Final = 1_024
"""Calls that a server takes at once, of everybody."""

HARDENED_SERVER_OPTIONS: Final[tuple[Option, ...]] = (
    # A second process of the same user could otherwise bind our port and take a share of our connections.
    ("grpc.so_reuseport", 0),
    # Without it none is advertised, and 3,000 streams on one connection were accepted.
    ("grpc.max_concurrent_streams", 100),
    # On by default, it goes on counting a stream until Python has dropped the call's last object, which is later
    # than the peer can know that it ended: a client with 90 calls at once was told UNAVAILABLE for every second one.
    # Streams that are begun and reset take places of their caller's share, which is 64.
    ("grpc.http.overload_protection", 0),
    # A handshake that dawdles holds a socket for two minutes by default.
    ("grpc.server_handshake_timeout_ms", 2_000),
    # Equal on purpose: between a soft and a hard limit, refusal is random.
    ("grpc.max_metadata_size", 8_192),
    ("grpc.absolute_max_metadata_size", 8_192),
    # Bounds how long a connection outlives a removed root; a stream then has the grace to end.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 300_000),
    ("grpc.max_allowed_incoming_connections", 1_024),
    # Finds dead peers of long streams.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Pings more frequent than this are abuse: two strikes, then GOAWAY. Ours ping every 30 s.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.max_ping_strikes", 2),
)
"""Of the synchronous and the aio server alike."""

CHANNEL_OPTIONS: Final[tuple[Option, ...]] = (
    # A proxy named by the environment must not see which services are called.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_metadata_size", 16_384),
    ("grpc.absolute_max_metadata_size", 16_384),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # A replica that is back is found before the next one of a rolling restart goes: see RECONNECTED_WITHIN.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 1),
    # One connection per channel: a rotated channel must not find the old one's connection in a shared pool.
    ("grpc.use_local_subchannel_pool", 1),
    # A resolver could otherwise hand us a service configuration by DNS TXT record.
    ("grpc.service_config_disable_resolution", 1),
)
"""Of every channel; the rest depends on whom it calls."""

RECONNECTED_WITHIN: Final = timedelta(seconds=5)
"""By when every channel of ours has found a replica that is ready again: the longest pause, a fifth of it for
chance, and a slow handshake. A rolling restart waits as long between two replicas (`minReadySeconds`)."""


def server_options(
    *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, share_port: bool = False
) -> tuple[Option, ...]:
    """The hardened options, with the largest message either way; `share_port` for several workers on one port."""
    hardened = dict(HARDENED_SERVER_OPTIONS) | ({"grpc.so_reuseport": 1} if share_port else {})
    return (*hardened.items(), *message_options(max_message_bytes))


def message_options(max_message_bytes: int) -> tuple[Option, ...]:
    """The largest message either way, after decompression."""
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )
