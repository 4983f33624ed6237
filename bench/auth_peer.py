"""The peer that `bench.auth` is held against: node's oidc-provider, issuing JWT access tokens from memory.

It is asked over plain HTTP with connections kept open, and stores nothing: both in
its favour. A second one of it does on a connection what ours does: mutual TLS 1.3, a client that its
certificate proves, tokens bound to that. Beside that one nothing is asked for; it says what of
the difference is TLS.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from bench.auth_served import DOMAIN, OPERATOR, Served
from bench.auth_sides import Call, Side, context

PROVIDER: Final = "oidc-provider@9.13.3"

MUTUAL: Final = "oidc-provider over mutual TLS"

_PROGRAM: Final = Path(__file__).parent / "oidc_provider.mjs"


def find_provider(given: str | None) -> Path | None:
    """The folder with the peer: the given one, or one that npm fills now; None, and a word why, without either."""
    if given is not None:
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"casemate-bench-oidc-provider-{os.getuid()}"
    if (folder / "node_modules" / "oidc-provider").is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        print("oidc-provider is left out: node and npm are not installed", file=sys.stderr)
        return None
    folder.mkdir(mode=0o700, exist_ok=True)
    install = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PROVIDER]
    done = subprocess.run(install, check=False, capture_output=True, timeout=300)  # noqa: S603  # the bench's own words
    if done.returncode:
        print("oidc-provider is left out: npm could not install it", file=sys.stderr)
        return None
    return folder


@asynccontextmanager
async def oidc_provider(folder: Path, mutual: Served | None = None) -> AsyncIterator[Side]:
    """The peer, on a port of its own choice; with the certificates of another service, over mutual TLS."""
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("node is not installed")
    secret = secrets.token_urlsafe(32)
    leaves = None if mutual is None else mutual.directory / "leaves"
    shown = [] if leaves is None else [str(leaves / "auth"), OPERATOR]
    process = await asyncio.create_subprocess_exec(
        node,
        str(_PROGRAM),
        str(folder),
        secret,
        *shown,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        port = await _port(process.stdout)
        proof = f"&client_secret={secret}" if leaves is None else ""
        body = f"grant_type=client_credentials&client_id=bench{proof}&scope=models.infer"
        head = (
            f"POST /token HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )

        bound = leaves is not None

        async def connect(stack: AsyncExitStack) -> Call:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                port,
                ssl=None if leaves is None else context(leaves / "operator"),
                server_hostname=None if leaves is None else f"auth.{DOMAIN}",
            )
            stack.callback(writer.close)

            async def call() -> None:
                writer.write((head + body).encode())
                answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(answered.split("content-length:")[1].split("\r\n")[0])
                said = json.loads(await reader.readexactly(length))
                # A JWT, not a reference to something in its memory.
                _, claims, _ = said["access_token"].split(".")
                assert bound is (b'"x5t#S256"' in base64.urlsafe_b64decode(claims + "==")), said

            return call

        yield Side(name="oidc-provider" if leaves is None else MUTUAL, pid=process.pid, connect=connect)
    finally:
        process.terminate()
        await process.wait()


async def _port(output: asyncio.StreamReader) -> int:
    async for line in output:
        words = line.decode().split()
        if words[:1] == ["port"]:
            return int(words[1])
    raise RuntimeError("the peer ended before it was ready")
