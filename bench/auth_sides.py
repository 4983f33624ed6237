"""Those who issue tokens, side by side: auth by rpc, auth by its HTTPS face, and the peer.

What each does for one token:

- auth, either face: mutual TLS 1.3 on the connection, whose certificate is judged again on every call (dates, SPIFFE
  ID, revocations); freshness of the trust feed; rates and shares; the client's row, verified in the last
  minute and dropped when a change of it is told; one Ed25519 signature over a token that is bound to the
  certificate; a line of the audit, hash-chained and synced to disk.
- the peer: plain HTTP, a secret compared in memory, one Ed25519 signature over a token that whoever holds it may use.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bench.auth_served import DOMAIN, Served, channel_to
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub

Call: TypeAlias = Callable[[], Awaitable[None]]
Connect: TypeAlias = Callable[[AsyncExitStack], Awaitable[Call]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One who is measured: its process, and how a caller of it is made."""

    name: str
    pid: int
    connect: Connect


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one side did in one round."""

    per_second: float
    per_core: float
    took: tuple[float, ...]


async def sample(side: Side, calls: Sequence[Call], *, seconds: float) -> Sample:
    """Every call again and again, all at once; per core is for a second of the process's own time."""
    took: list[float] = []
    began, busy = time.perf_counter(), _processor_seconds(side.pid)

    async def work(call: Call) -> None:
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            await call()
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(work(call) for call in calls))
    spent, elapsed = _processor_seconds(side.pid) - busy, time.perf_counter() - began
    return Sample(per_second=len(took) / elapsed, per_core=len(took) / spent, took=tuple(took))


def issuing_by_rpc(served: Served) -> Side:
    """`IssueToken`, each caller on a connection of its own, as on all sides."""

    async def connect(stack: AsyncExitStack) -> Call:
        stub = TokenServiceStub(await stack.enter_async_context(channel_to(served, "operator")))

        async def call() -> None:
            await stub.IssueToken(tokens.IssueTokenRequest(audience="auth"))

        return call

    return Side(name="rpc", pid=served.pid, connect=connect)


def introspecting_by_rpc(served: Served) -> Side:
    """`IntrospectToken` of one live token."""

    async def connect(stack: AsyncExitStack) -> Call:
        stub = TokenServiceStub(await stack.enter_async_context(channel_to(served, "operator")))
        token = (await stub.IssueToken(tokens.IssueTokenRequest(audience="auth"))).access_token

        async def call() -> None:
            answer = await stub.IntrospectToken(tokens.IntrospectTokenRequest(token=token))
            assert answer.active

        return call

    return Side(name="rpc", pid=served.pid, connect=connect)


def issuing_by_https(served: Served) -> Side:
    """`POST /oauth2/token`, each caller on a connection of its own."""
    body = "grant_type=client_credentials&client_id=operator&audience=auth"

    async def connect(stack: AsyncExitStack) -> Call:
        return (await _https(served, stack))("/oauth2/token", body, b'"access_token"')

    return Side(name="HTTPS face", pid=served.pid, connect=connect)


def introspecting_by_https(served: Served) -> Side:
    """`POST /oauth2/introspect` of one live token."""

    async def connect(stack: AsyncExitStack) -> Call:
        async with channel_to(served, "operator") as channel:
            issued = await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))
        body = f"client_id=operator&token={issued.access_token}"
        return (await _https(served, stack))("/oauth2/introspect", body, b'"active":true')

    return Side(name="HTTPS face", pid=served.pid, connect=connect)


async def _https(served: Served, stack: AsyncExitStack) -> Callable[[str, str, bytes], Call]:
    leaf = served.directory / "leaves" / "operator"
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", served.https_port, ssl=context(leaf), server_hostname=f"auth.{DOMAIN}"
    )
    stack.callback(writer.close)

    def posting(path: str, body: str, expected: bytes) -> Call:
        request = (
            f"POST {path} HTTP/1.1\r\nHost: auth.{DOMAIN}:{served.https_port}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

        async def call() -> None:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            said = await reader.readexactly(length)
            assert expected in said.replace(b" ", b""), said

        return call

    return posting


def context(leaf: Path) -> ssl.SSLContext:
    """TLS of a client that shows this leaf."""
    made = ssl.create_default_context(cafile=leaf / "ca.pem")
    made.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
    return made


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
