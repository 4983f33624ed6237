"""HTTP faces in tests: one over a gate's world or over any function, and lines to it."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from casemate.gate.adapters.http import REQUEST_ID_HEADER
from casemate.transport.certificates import CertificateSource
from casemate.transport.http_messages import Answer
from casemate.transport.http_protocol import HttpProtocols
from casemate.transport.https import HttpsServer
from tests.gate.world import World

NAME = "datasets.casemate.internal"
LIMIT_S = 20.0


@dataclass
class Faced:
    """A face over a world's gate: a path names a method of its table."""

    world: World
    port: int
    seen: list[object]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def ask(self, line, method, *, token=None, then=None):
        reader, writer = line
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        narrow = f"Then: {then}\r\n" if then else ""
        head = f"POST /{method} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{authorization}{narrow}\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(LIMIT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        named = dict(line.split(": ", 1) for line in head[1:] if line)
        body = (await reader.readexactly(int(named["Content-Length"]))).decode()
        assert named[REQUEST_ID_HEADER]
        return int(head[0].split()[1]), body

    async def line(self, directory):
        context = ssl.create_default_context(cafile=directory / "ca.pem")
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        line = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=NAME)
        self.writers.append(line[1])
        return line

    async def close(self):
        for writer in self.writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def opened(directory, answer, **pace):
    """A face of this certificate, without a gate, and its source."""
    source = CertificateSource(directory)
    protocols = HttpProtocols(answer=answer, malformed=lambda status: Answer(status=status), **pace)
    server = HttpsServer(source=source, address="127.0.0.1:0", protocol=protocols)
    await server.start()
    face = Faced(World(), server.port, [])
    try:
        yield face, source, server, protocols
    finally:
        server.close()
        await face.close()
        await protocols.drain(timedelta(0))
        await server.wait_closed(timedelta(0))
