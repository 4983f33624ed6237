"""Many callers of one tenant that each call again as soon as they are answered, at next to no cost of their own.

`python -m bench.flood_wire DIRECTORY` reads lines of JSON: a port, a token, the calls of each connection at
once, and a payload. It floods that port until the next line, says how many calls were served and how many refused,
and floods again for the one after that. The frames are made beforehand but for their numbers.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import struct
import sys
import time
from io import FileIO
from pathlib import Path

from bench.garbage_wire import (
    ACK,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    NEVER_INDEXED,
    PING,
    RESET,
    SETTINGS,
    frame,
    text,
)
from bench.gate_server import TRUST_DOMAIN

_DATA, _WINDOW_UPDATE = 0, 8
_TICK_S = 0.05
_FIRST_WINDOW = 65_535
_LAST_S = 10.0


class Connection:
    """One connection with so many calls under way, each followed by the next.

    Args:
        port: of the server.
        directory: with `flood`, the certificate of these callers.
        method: full name.
        token: theirs.
        payload: of each call.
        at_once: calls under way; below the hundred that a server of ours allows.
    """

    def __init__(self, port: int, directory: Path, *, method: str, token: str, payload: bytes, at_once: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(directory / "flood" / "ca.pem")
        context.load_cert_chain(directory / "flood" / "cert.pem", directory / "flood" / "key.pem")
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", port), timeout=30)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.secure = context.wrap_socket(raw, server_hostname=f"inference.{TRUST_DOMAIN}")
        # Room for all that is answered, so that nothing of it is ever given back.
        room = struct.pack("!I", 2**31 - 1 - _FIRST_WINDOW)
        self.secure.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + frame(_WINDOW_UPDATE, 0, 0, room)
        )
        self.secure.settimeout(0)
        names = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", method),
            (":authority", f"inference.{TRUST_DOMAIN}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
        ]
        self._headers = b"".join(NEVER_INDEXED + text(name) + text(value) for name, value in names)
        self._message = b"\0" + struct.pack("!I", len(payload)) + payload
        self._at_once, self._window, self._stream = at_once, _FIRST_WINDOW, 1
        self._left = self._unsent = b""
        self.sent = self.answered = self.served = 0

    def send(self, *, more: bool) -> None:
        """Sends what is due: a call for each that was answered, if there are to be more."""
        parts = [self._unsent]
        due = self._at_once - (self.sent - self.answered) if more else 0
        for _ in range(min(due, self._window // len(self._message))):
            parts += [
                frame(HEADERS, END_HEADERS, self._stream, self._headers),
                frame(_DATA, END_STREAM, self._stream, self._message),
            ]
            self._window -= len(self._message)
            self._stream += 2
            self.sent += 1
        waiting = b"".join(parts)
        while waiting:
            try:
                waiting = waiting[self.secure.send(waiting) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
        self._unsent = waiting

    def receive(self) -> None:
        """Takes what has come.

        Raises:
            RuntimeError: the server closed the connection.
        """
        try:
            got = self._left + self.secure.recv(65_536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if len(got) == len(self._left):
            raise RuntimeError("the server closed the connection of the flood")
        at = 0
        while len(got) - at >= 9:
            size = int.from_bytes(got[at : at + 3])
            if len(got) - at < 9 + size:
                break
            self._take(got[at + 3], got[at + 4], int.from_bytes(got[at + 5 : at + 9]), got[at + 9 : at + 9 + size])
            at += 9 + size
        self._left = got[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == RESET or (kind == HEADERS and flags & END_STREAM):
            self.answered += 1
        elif kind == _DATA:
            self.served += 1  # every reply here is one frame
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            self._unsent += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._unsent += frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            raise RuntimeError(f"the server sent the flood away: {payload[8:]!r}")


def flood(connections: list[Connection], told: FileIO) -> tuple[int, int]:
    """Floods until a line comes; how many calls were served, and how many refused."""
    before = [(each.served, each.answered) for each in connections]
    readable = [each.secure for each in connections]
    for each in connections:
        each.send(more=True)
    while True:
        ready, _, _ = select.select([*(each.fileno() for each in readable), told.fileno()], [], [], _TICK_S)
        if told.fileno() in ready:
            break
        for each in connections:
            each.receive()
            each.send(more=True)
    served = sum(each.served - was for each, (was, _) in zip(connections, before, strict=True))
    answered = sum(each.answered - was for each, (_, was) in zip(connections, before, strict=True))
    ends = time.monotonic() + _LAST_S
    while any(each.answered < each.sent for each in connections) and time.monotonic() < ends:
        select.select(readable, [], [], _TICK_S)
        for each in connections:
            each.receive()
            each.send(more=False)
    return served, answered - served


def main(directory: Path) -> None:
    """Floods as it is told."""
    os.nice(5)  # it shares its processor with the caller whose calls are timed
    told = FileIO(0)  # unbuffered: what is waited for must not be here already
    known: dict[tuple[int, int, int], list[Connection]] = {}
    while line := told.readline():
        asked = json.loads(line)
        key = (asked["port"], asked["connections"], asked["at_once"])
        if key not in known:
            known[key] = [
                Connection(
                    asked["port"],
                    directory,
                    method=asked["method"],
                    token=asked["token"],
                    payload=bytes.fromhex(asked["payload"]),
                    at_once=asked["at_once"],
                )
                for _ in range(asked["connections"])
            ]
        served, refused = flood(known[key], told)
        told.readline()
        print(json.dumps([served, refused]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
