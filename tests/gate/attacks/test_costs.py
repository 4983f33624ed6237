"""What attacks cost a server: it stands in a process of its own, where that can be read off."""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.transport.options import HARDENED_SERVER_OPTIONS
from tests.gate.attacks import scene as raw
from tests.gate.attacks.alone import Alone
from tests.gate.attacks.scene import EXHAUSTED, RawClient, connected, frame, headers_of, tls
from tests.gate.served import LIMIT_S, PARSED, Served
from tests.gate.world import bearer

UNARY = "/test.Echo/Unary"
DIGITS = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
OPTIONS = dict(HARDENED_SERVER_OPTIONS)


@pytest.fixture(scope="module")
def alone(kind, service_leaf, trainer):
    server = Alone(kind, str(service_leaf), str(trainer))
    yield server
    server.close()


@pytest.fixture(scope="module")
def channel(alone, trainer):
    with Served(None, None, alone.port, None).channel(trainer) as channel:
        yield channel


@pytest.fixture
def good(alone, channel):
    """The twin of every attack here, and what must hold after it: a good call on a connection of before."""

    def call():
        assert channel.unary_unary(UNARY)(DIGITS, metadata=bearer(alone.token), timeout=LIMIT_S)

    call()
    yield call
    call()


@contextmanager
def by_hand(alone, leaf):
    with connected(alone.port, tls(leaf)) as secure:
        yield RawClient(secure)


def settled(alone, wanted):
    """What was used, once `wanted` holds of it."""
    ends = time.monotonic() + 6 * LIMIT_S
    while not wanted(used := alone.used()):
        assert time.monotonic() < ends, used
        time.sleep(0.02)
    return used


def test_large_bodies_with_a_bad_token_leave_memory_as_it_was(alone, good, channel, trainer):
    body = b"\0" * (32 * 1024 * 1024)
    invoke = channel.unary_unary(UNARY)

    def refuse(count):
        for _ in range(count):
            with pytest.raises(grpc.RpcError) as refused:
                invoke(body, metadata=bearer("x.y.z"), timeout=LIMIT_S)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    refuse(5)
    before = alone.used()
    refuse(15)
    after = alone.used()
    assert after["denials"] == before["denials"] + 15
    assert after["entered"] == before["entered"]
    assert (
        after["rss_mib"] - before["rss_mib"] < 64
    )  # of 480 MiB that were offered: what the transport has in hand, and no body that is kept
    good()


def test_a_thousand_connections_are_the_most_and_those_of_before_are_served(alone, good, trainer):
    most, more = OPTIONS["grpc.max_allowed_incoming_connections"], 80
    assert most == 1_024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_048:
        pytest.skip("this system gives a process fewer descriptors than connections are made here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_048), hard))
    with ExitStack() as stack:
        poll, open_now = select.poll(), {}
        for _ in range(most + more):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", alone.port), timeout=LIMIT_S))
            open_now[one.fileno()] = one
            poll.register(one, select.POLLIN)
        closed = 0
        # One place is the good caller's.
        while closed < more + 1:
            events = poll.poll(LIMIT_S * 1_000)
            assert events, closed
            for number, _event in events:
                with_end = open_now.pop(number)
                poll.unregister(number)
                with suppress(ConnectionError):
                    assert with_end.recv(1) == b""
                closed += 1
        good()  # while all places are taken
        assert poll.poll(0) == []
        assert len(open_now) == most - 1
    with Served(None, None, alone.port, None).channel(trainer) as fresh:
        ready = grpc.channel_ready_future(fresh)
        ready.result(LIMIT_S)
        assert fresh.unary_unary(UNARY)(DIGITS, metadata=bearer(alone.token), timeout=LIMIT_S)


def test_twenty_thousand_streams_that_are_reset_at_once_start_no_handler(alone, good, trainer):
    block = headers_of(UNARY, ("authorization", f"Bearer {alone.token}"))
    before, sent, streams = alone.used(), 0, 20_000
    while sent < streams:
        # Whoever resets too many is sent away (GOAWAY), and comes again.
        with by_hand(alone, trainer) as client:
            for first in range(1, 4_001, 200):
                client.send(
                    *(
                        frame(raw.HEADERS, raw.END_HEADERS, stream, block)
                        + frame(raw.RST, 0, stream, struct.pack("!I", 8))
                        for stream in range(first, first + 200, 2)
                    )
                )
                sent += 100
                if client.closed or sent >= streams:
                    break
    after = settled(alone, lambda used: used["running"] == 0)
    assert after["entered"] == before["entered"]
    assert after["rss_mib"] - before["rss_mib"] < 32


def test_ten_thousand_streams_of_one_connection_run_a_hundred_at_a_time(alone, good, trainer):
    block = headers_of(UNARY, ("authorization", f"Bearer {alone.token}"))
    before = alone.used()
    with by_hand(alone, trainer) as client:
        for first in range(1, 20_001, 1_000):
            client.send(
                *(frame(raw.HEADERS, raw.END_HEADERS, stream, block) for stream in range(first, first + 1_000, 2))
            )
            if client.closed:
                break
        during = settled(alone, lambda used: used["running"] > 0 or used["denials"] > before["denials"])
        assert during["running"] <= 64  # the share of one caller; the connection's is a hundred
        assert OPTIONS["grpc.max_concurrent_streams"] == 100
        with pytest.raises(grpc.RpcError) as told:
            good()  # it is the same caller, and his own share is what he took
        assert told.value.code() is EXHAUSTED
    after = settled(alone, lambda used: used["running"] == 0)
    assert after["entered"] == before["entered"]
    assert after["denials"] - before["denials"] <= 10_000


FLOODS = {
    "pings": lambda: frame(raw.PING, 0, 0, b"12345678"),
    "settings": lambda: frame(raw.SETTINGS, 0, 0),
    "empty data": lambda: frame(raw.DATA, 0, 1),
    "priorities": lambda: frame(2, 0, 1, b"\0\0\0\0\1"),
    "continuations": lambda: frame(raw.CONTINUATION, 0, 3, b""),
}
FRAMES = 50_000


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_costs_little_or_is_sent_away(alone, good, trainer, flood):
    """Bounded: a connection that is not sent away costs the server microseconds a frame, and no memory."""
    before = alone.used()
    with by_hand(alone, trainer) as client:
        client.send(frame(raw.HEADERS, raw.END_HEADERS, 1, headers_of(UNARY)))
        if flood == "continuations":
            client.send(frame(raw.HEADERS, 0, 3, headers_of(UNARY)))
        frames = FLOODS[flood]() * 1_000
        for _ in range(FRAMES // 1_000):
            client.send(frames)
            if client.closed:
                break
        good()
    after = alone.used()
    cost_us = 1e6 * (after["cpu_s"] - before["cpu_s"]) / FRAMES
    assert client.closed or cost_us < 20
    assert after["rss_mib"] - before["rss_mib"] < 32
