"""A sender of forged tokens that costs next to nothing: HTTP/2 frames made beforehand but for their numbers.

`python -m bench.garbage_wire PORT RATE DIRECTORY KID` sends that many calls a second from a line
on its standard input to the next one, and then says how many were answered. A client of grpcio
takes longer for a call than the server takes to refuse it, and shares its processor with the good
caller whom the flood must not slow down.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.gate_server import METHODS, TRUST_DOMAIN
from bench.tokens import forged_parts

HEADERS, RESET, SETTINGS, PING, GOAWAY = 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_AT_ONCE = 90
"""Of the hundred streams that a connection may have."""
TICK_S = 0.002
NEVER_INDEXED = b"\x10"  # RFC 7541 section 6.2.3


class Wire:
    """One connection, and calls of the echo on it, each with a token of its own that names the key `kid`."""

    def __init__(self, port: int, directory: Path, kid: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(directory / "client" / "ca.pem")
        context.load_cert_chain(directory / "client" / "cert.pem", directory / "client" / "key.pem")
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", port), timeout=30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._secure = context.wrap_socket(raw, server_hostname=f"inference.{TRUST_DOMAIN}")
        self._secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self._secure.settimeout(0)
        before, after = forged_parts(kid)
        self._after = after.encode()
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", METHODS["echo"]),
            (":authority", f"inference.{TRUST_DOMAIN}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        token_length = len(before) + 21 + len(self._after)
        self._before = (
            b"".join(NEVER_INDEXED + text(name) + text(value) for name, value in headers)
            + NEVER_INDEXED
            + text("authorization")
            + length(len("Bearer ") + token_length)
            + f"Bearer {before}".encode()
        )
        size = len(self._before) + 21 + len(self._after)
        self._head = struct.pack("!I", size)[1:] + bytes([HEADERS, END_HEADERS | END_STREAM])
        self._stream, self._left, self._unsent = 1, b"", b""
        self.sent = self.answered = 0

    def run(self, *, rate: float | None, until: Callable[[], bool]) -> float:
        """Sends at that rate, or as fast as answers come; how many seconds it took until all were answered."""
        begun = time.monotonic()
        sent, answered = self.sent, self.answered
        while not until():
            due = _AT_ONCE if rate is None else int(rate * (time.monotonic() - begun)) - (self.sent - sent)
            self._send(min(due, _AT_ONCE - (self.sent - self.answered)))
            self._receive(TICK_S)
        ends = time.monotonic() + 30
        while self.answered < self.sent and time.monotonic() < ends:
            self._receive(TICK_S)
        if self.answered - answered != self.sent - sent:
            raise RuntimeError("calls of the flood were not answered")
        return time.monotonic() - begun

    def _send(self, calls: int) -> None:
        parts = [self._unsent]
        for _ in range(calls):
            self.sent += 1
            parts += [self._head, struct.pack("!I", self._stream), self._before, b"%021d" % self.sent, self._after]
            self._stream += 2
        waiting = b"".join(parts)
        while waiting:
            try:
                waiting = waiting[self._secure.send(waiting) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
        self._unsent = waiting

    def _receive(self, wait_s: float) -> None:
        if not self._secure.pending():
            select.select([self._secure], [], [], wait_s)
        try:
            got = self._left + self._secure.recv(65_536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if len(got) == len(self._left):
            raise RuntimeError("the server closed the connection of the flood")
        at = 0
        while len(got) - at >= 9:
            size, kind, flags = int.from_bytes(got[at : at + 3]), got[at + 3], got[at + 4]
            if len(got) - at < 9 + size:
                break
            if kind == RESET or (kind == HEADERS and flags & END_STREAM):
                self.answered += 1
            elif kind == SETTINGS and not flags & ACK:
                self._unsent += frame(SETTINGS, ACK, 0)
            elif kind == PING and not flags & ACK:
                self._unsent += frame(PING, ACK, 0, got[at + 9 : at + 17])
            elif kind == GOAWAY:
                raise RuntimeError("the server sent the flood away")
            at += 9 + size
        self._left = got[at:]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def length(size: int) -> bytes:
    """A string's length without Huffman coding (RFC 7541 section 5.1)."""
    if size < 127:
        return bytes([size])
    size, out = size - 127, [127]
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    return bytes([*out, size])


def text(value: str) -> bytes:
    """A string as it stands in a header block."""
    return length(len(value)) + value.encode()


def main(port: int, rate: float, directory: Path, kid: str) -> None:
    """Floods between lines of standard input."""
    os.nice(19)  # it shares its processor with the good caller, whose own turn must not be what it takes
    wire = Wire(port, directory, kid)
    while sys.stdin.readline():
        before = wire.answered
        wire.run(rate=rate, until=lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
        sys.stdin.readline()
        print(wire.answered - before, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
