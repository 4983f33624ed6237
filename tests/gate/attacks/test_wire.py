"""Attacks on HTTP/2 and gRPC framing, some of them by hand: what no client of grpcio would send."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import struct
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import grpc
import pytest
from cryptography import x509

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
from casemate.gate.core.peer import PeerVerifier
from casemate.transport.registry import RegisteredService
from tests.gate.attacks import scene as raw
from tests.gate.attacks.scene import EXHAUSTED, INVALID, NOT_FOUND, UNAUTHENTICATED, RawClient, Scene, frame, headers_of
from tests.gate.served import LIMIT_S, PARSED, serve
from tests.gate.world import DOMAIN, World, bearer

hpack = pytest.importorskip("hpack")

UNARY = "/test.Echo/Unary"
DIGITS = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
WHOLE = raw.END_HEADERS | raw.END_STREAM


@pytest.fixture
def by_hand(scene, trainer):
    with raw.connected(scene.served.port, raw.tls(trainer)) as secure:
        yield RawClient(secure)


def message(payload, *, compressed=0, length=None):
    return struct.pack("!BI", compressed, len(payload) if length is None else length) + payload


def request(token, *more, path=UNARY, payload=None, **headers):
    """One call on stream 1, as frames."""
    block = headers_of(path, ("authorization", f"Bearer {token}"), *more, **headers)
    body = message(DIGITS) if payload is None else payload
    return frame(raw.HEADERS, raw.END_HEADERS, 1, block) + frame(raw.DATA, raw.END_STREAM, 1, body)


def answer(client, number=1):
    """The `grpc-status` of a stream; `reset`, `goaway`, `closed` or `:status …` where there is none."""
    decoder, found = hpack.Decoder(), {}
    for kind, stream, payload in client.frames(until=raw.stream_ended(number)):
        if kind == raw.HEADERS:
            found.update(dict(decoder.decode(payload)) if stream == number else {})
        elif kind == raw.RST and stream == number:
            return found.get("grpc-status", "reset")
        elif kind == raw.GOAWAY:
            return f"goaway {int.from_bytes(payload[4:8])}"
    return found.get("grpc-status") or (f":status {found[':status']}" if found else "closed")


@contextmanager
def untouched(scene, *, good=0):
    """Whatever happens inside enters no handler but for `good` calls, and a good caller is served afterwards."""
    entered = len(scene.served.echo.entered)
    yield
    assert len(scene.served.echo.entered) == entered + good
    scene.good()


def test_the_hand_made_client_is_served_when_it_keeps_the_rules(by_hand, token):
    by_hand.send(request(token))
    assert answer(by_hand) == "0"


def test_a_ticket_of_a_certificate_that_has_expired_opens_a_connection_and_no_call(scene, trainer):
    """TLS 1.3 resumes without showing the certificate, so its dates are the gate's to judge."""
    context, ask = raw.tls(trainer), frame(raw.HEADERS, raw.END_HEADERS, 1, headers_of("/test.Echo/Peer"))
    ask += frame(raw.DATA, raw.END_STREAM, 1, message(DIGITS))
    clock = scene.world.clock

    def call(session=None):
        with raw.connected(scene.served.port, context, session=session) as secure:
            client = RawClient(secure)
            client.send(ask)
            return answer(client), secure.session, secure.session_reused

    status, ticket, reused = call()
    assert (status, reused) == ("0", False)
    assert ticket.has_ticket
    status, _, reused = call(ticket)
    assert (status, reused) == ("0", True)  # the twin: resumed, before the end of its certificate
    ends = x509.load_pem_x509_certificate((trainer / "cert.pem").read_bytes()).not_valid_after_utc
    clock.offset += ends - clock.now()
    scene.world.hear()
    entered = len(scene.served.echo.entered)
    status, _, reused = call(ticket)
    assert (status, reused) == ("16", True)  # UNAUTHENTICATED
    assert scene.world.audit.denials == ["PEER_REFUSED"]
    assert len(scene.served.echo.entered) == entered
    clock.offset -= timedelta(seconds=30)  # the twin again: half a minute before
    assert call(ticket)[0] == "0"


@pytest.mark.parametrize("how", ["one of 9 KiB", "400 of them", "a long path"])
def test_too_much_metadata(scene, token, how):
    metadata, method = bearer(token), "Unary"
    if how == "one of 9 KiB":
        metadata = (*metadata, ("x-note", "n" * 9 * 1024))
    elif how == "400 of them":
        metadata = (*metadata, *((f"x-note-{number}", "n") for number in range(400)))
    else:
        method = "Unary" + "x" * 9_000
    with untouched(scene):
        for _ in range(8):
            with pytest.raises(grpc.RpcError) as refused:
                scene.served.call(scene.channel, method, metadata=metadata)
            assert refused.value.code() is EXHAUSTED
    scene.good(metadata=(*bearer(token), ("x-note", "n" * 1_024)))


def test_headers_that_unpack_to_more_than_they_are(scene, by_hand, token):
    encoder = hpack.Encoder()
    block = headers_of(UNARY, ("authorization", f"Bearer {token}"))
    bomb = encoder.encode([("x-bomb", "b" * 3_900)])
    reference = encoder.encode([("x-bomb", "b" * 3_900)])
    assert len(reference) < 4
    with untouched(scene):
        by_hand.send(frame(raw.HEADERS, WHOLE, 1, block + bomb + reference * 2_000))
        # RESOURCE_EXHAUSTED by the transport; or the gate was quicker to find that no message came.
        assert answer(by_hand) in {"8", "3"}


FLOODS = {
    "pings": lambda: frame(raw.PING, 0, 0, b"12345678") * 10_000,
    "settings": lambda: frame(raw.SETTINGS, 0, 0) * 10_000,
    "empty data": lambda: frame(raw.DATA, 0, 1) * 10_000,
    "priorities": lambda: frame(2, 0, 1, b"\0\0\0\0\1") * 10_000,
    "continuations": lambda: frame(raw.HEADERS, 0, 3, headers_of(UNARY)) + frame(raw.CONTINUATION, 0, 3, b"") * 10_000,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames(scene, by_hand, flood):
    with untouched(scene, good=1):
        # A stream without a token, kept open by its client: it is refused, and the flood goes on.
        by_hand.send(frame(raw.HEADERS, raw.END_HEADERS, 1, headers_of(UNARY)))
        by_hand.send(FLOODS[flood]())
        scene.good()  # meanwhile
        if flood == "pings":
            assert answer(by_hand, number=-1) in {"goaway 11", "closed"}  # ENHANCE_YOUR_CALM


def test_streams_that_are_reset_as_soon_as_they_begin(scene, by_hand, token):
    block = headers_of(UNARY, ("authorization", f"Bearer {token}"))
    entered = len(scene.served.echo.entered)
    for wave in range(20):
        first = wave * 200 + 1
        by_hand.send(
            *(
                frame(raw.HEADERS, raw.END_HEADERS, stream, block) + frame(raw.RST, 0, stream, struct.pack("!I", 8))
                for stream in range(first, first + 200, 2)
            )
        )
    # The flood is by the good caller itself, on another connection: while its own share is taken it is told to
    # wait, and each reset gives its place back.
    deadline = time.monotonic() + 60
    while True:
        try:
            scene.good()
            break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    assert len(scene.served.echo.entered) == entered + 1
    assert scene.world.gate._quota.running <= 64  # of the share of one caller, whatever was begun


def test_a_message_that_unpacks_to_more_than_may_be_sent(scene, token):
    bomb, small = gzip.compress(b"\0" * 40_000_000, 9), gzip.compress(DIGITS)
    assert len(bomb) < 60_000  # within the first window of flow control

    def sent(payload):
        with raw.connected(scene.served.port, raw.tls(scene.trainer)) as secure:
            client = RawClient(secure)
            body = message(payload, compressed=1)
            block = headers_of(UNARY, ("authorization", f"Bearer {token}"), ("grpc-encoding", "gzip"))
            parts = [body[at : at + 16_000] for at in range(0, len(body), 16_000)]
            client.send(frame(raw.HEADERS, raw.END_HEADERS, 1, block))
            client.send(*(frame(raw.DATA, 0, 1, part) for part in parts), frame(raw.DATA, raw.END_STREAM, 1))
            return answer(client)

    with untouched(scene):
        assert sent(bomb) == "8"  # RESOURCE_EXHAUSTED
    assert sent(small) == "0"


MESSAGES = {
    "compressed without a name": message(gzip.compress(DIGITS), compressed=1),
    "4 GiB announced": message(b"x", length=0xFFFFFFFF),
    "cut short": message(DIGITS, length=len(DIGITS) + 10),
    "half a prefix": b"\0\0",
}


@pytest.mark.parametrize("odd", MESSAGES)
def test_a_message_whose_frame_lies(scene, by_hand, token, odd):
    with untouched(scene):
        by_hand.send(request(token, payload=MESSAGES[odd]))
        assert answer(by_hand) not in {"0", "2"}  # an error, and never UNKNOWN with somebody's text


MALFORMED = {
    "cut": DIGITS[:-1],
    "wrong wire type": b"\x08\x01",
    "not a field": b"\xff\xff\xff\xff",
    "group without end": b"\x0b" * 50,
    "nested too deep": b"\x0b" * 200 + b"\x0c" * 200,
    "bytes that are no text": b"\x0a\x02\xff\xfe",
}


@pytest.mark.parametrize("odd", MALFORMED)
def test_bytes_that_are_no_message(scene, token, odd):
    entered = len(scene.served.echo.entered)
    with pytest.raises(grpc.RpcError) as refused:
        scene.served.call(scene.channel, token=token, raw=MALFORMED[odd])
    assert refused.value.code() in {INVALID, NOT_FOUND}  # NOT_FOUND where it parses and names nothing of ours
    reason = "INVALID_FIELD" if refused.value.code() is INVALID else "GRANT_MISSING"
    assert scene.world.audit.denials == [reason]
    assert "GetVersion" not in f"{refused.value.details()}{refused.value.trailing_metadata()}"
    assert len(scene.served.echo.entered) == entered
    unknown_field = DIGITS + b"\xf8\x07\x01"
    scene.good(token=token, raw=unknown_field)  # from a later version of the protocol: no error


def test_a_client_that_ends_without_a_message(scene, token):
    invoke = scene.channel.stream_unary(UNARY)
    with untouched(scene):
        with pytest.raises(grpc.RpcError) as refused:
            invoke(iter(()), metadata=bearer(token), timeout=LIMIT_S)
        assert refused.value.code() is INVALID
        with pytest.raises(grpc.RpcError) as stranger:
            invoke(iter(()), metadata=bearer("x.y.z"), timeout=LIMIT_S)
        assert stranger.value.code() is UNAUTHENTICATED


ODD_HEADERS = {
    "te": {"te": "chunked"},
    "content type": {"content_type": "text/plain"},
    "GET": {"method": "GET"},
    "timeout junk": {"more": ("grpc-timeout", "soon")},
    "timeout negative": {"more": ("grpc-timeout", "-1S")},
}


@pytest.mark.parametrize("odd", ODD_HEADERS)
def test_headers_that_are_not_grpcs(scene, by_hand, odd):
    """Without a token, so that whatever is made of them, nothing is served."""
    headers = dict(ODD_HEADERS[odd])
    more = headers.pop("more", None)
    with untouched(scene):
        by_hand.send(request("x.y.z", *([more] if more else []), **headers))
        assert answer(by_hand) != "0"


def test_a_timeout_beyond_all_calendars_is_taken_as_none(by_hand, token):
    by_hand.send(request(token, ("grpc-timeout", "99999999H")))
    assert answer(by_hand) == "0"


def test_a_deadline_that_has_passed(scene, token):
    with untouched(scene):
        with pytest.raises(grpc.RpcError) as late:
            scene.channel.unary_unary(UNARY)(DIGITS, metadata=bearer(token), timeout=1e-9)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_a_handler_waits_for_ends_with_its_callers_deadline(kind, service_leaf, trainer):
    """On `grpc.aio` the wait itself is ended, however deep; a synchronous handler is told what is left of its time."""
    left, ended = [], threading.Event()

    async def onwards():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def wait(request, context):
        left.append(context.time_remaining())
        if request == b"wait":
            await asyncio.gather(onwards())
        return request

    def wait_sync(request, context):
        left.append(context.time_remaining())
        if request == b"wait":
            context.add_callback(ended.set)
            ended.wait(context.time_remaining() + LIMIT_S)
        return request

    handler = grpc.unary_unary_rpc_method_handler(wait_sync if kind == "sync" else wait)
    services = [RegisteredService("test.Echo", {"Open": handler})]
    with serve(kind, World(), service_leaf, services=services) as served, served.channel(trainer) as channel:
        invoke, metadata = channel.unary_unary("/test.Echo/Open"), bearer(served.world.token(trainer))
        with pytest.raises(grpc.RpcError) as late:
            invoke(b"wait", metadata=metadata, timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert ended.wait(LIMIT_S)
        assert invoke(b"go on", metadata=metadata, timeout=LIMIT_S) == b"go on"
        assert left[0] < 1 < left[1] < LIMIT_S + 1


@pytest.mark.parametrize("name", ["x\r\ngrpc-status: 0", "x\ngrpc-message: ok", "%0d%0agrpc-status:0", "\0"])
def test_a_name_that_would_write_headers(scene, token, name):
    odd = GetVersionRequest(dataset=name, version=PARSED)
    error = scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, request=odd, audited="GRANT_MISSING")
    assert error.details() == "not found"
    assert name not in str(error.trailing_metadata())
    scene.good(token=token)


def test_a_key_exchange_that_a_quantum_computer_opens(kind, service_leaf, trainer):
    """Where the operator asks for it. OpenSSL 3.0 knows X25519 alone; two grpcio peers use the hybrid."""
    world = World()
    world.gate._peers = PeerVerifier(trust_domain=DOMAIN, post_quantum=True)
    with serve(kind, world, service_leaf) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        context = raw.tls(trainer)
        context.set_ecdh_curve("prime256v1")
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        with untouched(scene), raw.connected(served.port, context) as secure:
            client = RawClient(secure)
            client.send(request(world.token(trainer)))
            assert answer(client) == "16"
        assert world.audit.denials == ["PEER_REFUSED"]
        assert world.audit.events[-1].key_exchange_group is None
