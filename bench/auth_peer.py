"""The peer that `bench.auth` is held against: node's oidc-provider, issuing JWT access tokens from memory.

It is asked over plain HTTP with connections kept open, and stores nothing: both in
its favour. Needs `node`, and a folder into which `npm install oidc-provider` was run.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROGRAM: Final = Path(__file__).parent / "oidc_provider.mjs"


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer, and one call of it per connection."""

    pid: int
    connect: Callable[[AsyncExitStack], Awaitable[Callable[[], Awaitable[None]]]]


@asynccontextmanager
async def oidc_provider(folder: Path) -> AsyncIterator[Peer]:
    """The peer, on a port of its own choice."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("node is not installed")
    secret = secrets.token_urlsafe(32)
    process = await asyncio.create_subprocess_exec(
        node, str(_PROGRAM), str(folder), secret, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        port = await _port(process.stdout)
        body = f"grant_type=client_credentials&client_id=bench&client_secret={secret}&scope=models.infer"
        head = (
            f"POST /token HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )

        async def connect(stack: AsyncExitStack) -> Callable[[], Awaitable[None]]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)

            async def call() -> None:
                writer.write((head + body).encode())
                answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(answered.split("content-length:")[1].split("\r\n")[0])
                said = json.loads(await reader.readexactly(length))
                # A JWT, not a reference to something in its memory.
                assert said["access_token"].count(".") == 2, said

            return call

        yield Peer(process.pid, connect)
    finally:
        process.terminate()
        await process.wait()


async def _port(output: asyncio.StreamReader) -> int:
    async for line in output:
        words = line.decode().split()
        if words[:1] == ["port"]:
            return int(words[1])
    raise RuntimeError("the peer ended before it was ready")
