"""What every attack is measured by: its status and reason, and what must be true after it."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import contextmanager, suppress

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate.errors import Reason
from casemate.transport.status import from_rpc_error
from tests.gate.served import LIMIT_S, PARSED, Served
from tests.gate.world import DOMAIN
from tests.support.authority import OddProfile

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DENIED = grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Scene:
    """A running server, its owner's good caller, and the attacks on them."""

    def __init__(self, served: Served, channel, trainer, kind: str) -> None:
        self.served, self.channel, self.trainer, self.kind = served, channel, trainer, kind
        self.world = served.world

    def good(self, **call):
        """The twin, and what must be true after every attack: a good caller is served."""
        call.setdefault("token", self.world.token(self.trainer))
        channel = call.pop("channel", self.channel)
        assert self.served.call(channel, call.pop("method", "Unary"), **call).version == PARSED

    def refused(self, code, reason, *, audited=True, channel=None, method="Unary", **call):
        """One attack: refused so, in no handler, audited once under its reason, and nothing of it kept."""
        entered, denied = len(self.served.echo.entered), len(self.world.audit.denials)
        with pytest.raises(grpc.RpcError) as raised:
            self.served.call(channel or self.channel, method, **call)
        error = raised.value
        assert (error.code(), from_rpc_error(error).reason) == (code, reason), error.details()
        assert len(self.served.echo.entered) == entered
        self.audited(denied, audited)
        text = call.get("token", "")
        assert len(text) < 40 or text not in repr(self.world.audit.events)
        return error

    def audited(self, before, reason):
        if reason is not False:
            assert len(self.world.audit.denials) == before + 1
        if isinstance(reason, str):
            assert self.world.audit.denials[-1] == reason

    def unauthenticated(self, reason=Reason.TOKEN_INVALID, **call):
        return self.refused(UNAUTHENTICATED, reason, **{"audited": reason.value, **call})

    def unreachable(self, channel, **call):
        """The connection itself is refused: no handler, nothing for the gate to see."""
        entered, seen = len(self.served.echo.entered), len(self.world.audit.events)
        with pytest.raises(grpc.RpcError) as raised:
            self.served.call(channel, token=self.world.token(self.trainer), **call)
        assert raised.value.code() is UNAVAILABLE
        assert (len(self.served.echo.entered), len(self.world.audit.events)) == (entered, seen)


def tls(leaf, *, version=ssl.TLSVersion.TLSv1_3, alpn=("h2",), certificate=True):
    """A client's TLS context of exactly one version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(leaf / "ca.pem")
    if certificate:
        context.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def replace(path, content):
    """Puts a file in place of another, as renewals do."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def served_as(**changes):
    """A profile of a certificate of datasets, but for what is changed."""
    fields = {
        "uris": (f"spiffe://{DOMAIN}/svc/datasets",),
        "dns_names": (f"datasets.{DOMAIN}",),
        "usages": (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
        **changes,
    }
    return OddProfile(**fields)


@contextmanager
def connected(port, context, *, name=f"datasets.{DOMAIN}", session=None):
    with (
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as raw,
        context.wrap_socket(raw, server_hostname=name, session=session) as secure,
    ):
        yield secure


HEADERS, RST, SETTINGS, PING, GOAWAY, CONTINUATION, DATA = 1, 3, 4, 6, 7, 9, 0
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def field(name, value):
    """One header, literal and never indexed (RFC 7541 section 6.2.3), without Huffman coding."""

    def text(raw):
        length = len(raw)
        if length < 127:
            return bytes([length]) + raw
        rest, out = length - 127, [127]
        while rest >= 128:
            out.append(rest % 128 + 128)
            rest //= 128
        return bytes([*out, rest]) + raw

    return b"\x10" + text(name.encode()) + text(value.encode())


def headers_of(path, *more, method="POST", content_type="application/grpc", te="trailers"):
    pairs = [(":method", method), (":scheme", "https"), (":path", path), (":authority", f"datasets.{DOMAIN}")]
    pairs += [("content-type", content_type), ("te", te), *more]
    return b"".join(field(name, value) for name, value in pairs)


class RawClient:
    """HTTP/2 by hand: for what no client of grpcio would send."""

    def __init__(self, secure) -> None:
        self.secure = secure
        self.closed = False
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))

    def send(self, *frames):
        with self.losing():
            self.secure.sendall(b"".join(frames))

    @contextmanager
    def losing(self):
        try:
            yield
        except (OSError, ssl.SSLError):
            self.closed = True

    def frames(self, *, until):
        """Frames as they come, up to the first of which `until(kind, flags, stream)` holds, or the connection's end."""
        while not self.closed:
            head = self._read(9)
            if len(head) < 9:
                self.closed = True
                return
            length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
            stream = int.from_bytes(head[5:]) & 0x7FFFFFFF
            payload = self._read(length)
            if kind == SETTINGS and not flags & 1:
                self.send(frame(SETTINGS, 1, 0))
            yield kind, stream, payload
            if kind == GOAWAY or until(kind, flags, stream):
                return

    def _read(self, size):
        got = b""
        with suppress(OSError), self.losing():
            while len(got) < size and (part := self.secure.recv(size - len(got))):
                got += part
        return got


def stream_ended(number):
    return lambda kind, flags, stream: stream == number and (kind == RST or bool(flags & END_STREAM))
