"""The HTTPS face of a running service, and clients of it: a raw one to be wrong with, and requests."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc

from casemate.gate.adapters.protection import Protection, registered
from casemate.gate.core.policy import MethodPolicy, TokenAccess
from casemate.secret import Secret
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.status import from_rpc_error
from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc, servicer
from tests.services.auth.world import SOON, World, build_world
from tests.support.authority import TRUST_DOMAIN

NAME = f"auth.{TRUST_DOMAIN}"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} is said more than once"
        return found[0] if found else None

    @property
    def error(self) -> tuple[int, str]:
        return self.status, self.json["error"]


def client_context(directory: Path, **change: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    if change.pop("certificate", True):
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    for name, value in change.items():
        setattr(context, name, value)
    return context


@dataclass
class Line:
    """One connection, on which anything may be said."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)
        await self.writer.drain()

    async def hear(self, *, head: bool = False) -> Reply:
        """The next response; IncompleteReadError when the connection ends instead."""
        async with asyncio.timeout(SOON):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            body = b"" if head else await self.reader.readexactly(length)
        return Reply(int(first.split()[1]), headers, body)

    async def is_ended(self) -> bool:
        """Whether the other side ends the connection without another word."""
        async with asyncio.timeout(SOON):
            try:
                return await self.reader.read(1) == b""
            except (ConnectionError, ssl.SSLError):
                return True

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        lines = {"Host": NAME, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if method == "POST":
            lines = {"Content-Length": str(len(body)), "Content-Type": FORM, **lines}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.say(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return await self.hear(head=method == "HEAD")

    async def post(self, path: str, form: dict[str, str] | str = "", **headers: str) -> Reply:
        body = form if isinstance(form, str) else urlencode(form)
        return await self.ask("POST", path, body.encode(), **headers)

    async def token(self, audience: str = "inference", **form: str) -> Reply:
        return await self.post("/oauth2/token", {"grant_type": "client_credentials", "audience": audience, **form})

    async def get(self, path: str) -> Reply:
        return await self.ask("GET", path)


@dataclass
class Face:
    """The face, and how to reach it."""

    world: World
    operator: Any = None
    lines: list[Line] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.world.running.http_port

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"

    async def line(self, directory: Path, **change: Any) -> Line:
        """A connection with this certificate."""
        connection = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=client_context(directory, **change), server_hostname=NAME
        )
        self.lines.append(Line(*connection))
        return self.lines[-1]

    async def client(self, tenant: str, name: str) -> Line:
        return await self.line(self.world.leaf("client", tenant=tenant, name=name))

    async def plain(self) -> Line:
        self.lines.append(Line(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.lines[-1]

    async def close(self) -> None:
        for line in self.lines:
            line.writer.close()


@asynccontextmanager
async def shared_face(embedded_postgres: Any, leaf: Any, state: Path, **pace: Any) -> AsyncIterator[Face]:
    """A service of its own for a whole module, and an operator; its tests use names that differ."""
    database = await embedded_postgres.ensure_database(
        f"test_{secrets.token_hex(8)}", Secret(secrets.token_urlsafe(24))
    )
    async with build_world(database, leaf, state, **pace) as world, facing(world) as face:
        face.operator = world.operator()
        yield face


@asynccontextmanager
async def facing(world: World) -> AsyncIterator[Face]:
    face = Face(world)
    try:
        yield face
    finally:
        await face.close()


@contextmanager
def resolving() -> Iterator[None]:
    """The service's own name leads to this machine, as a resolver of the trust domain would have it."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host in {NAME, NAME.encode()} else host, *arguments, **options)

    socket.getaddrinfo = resolve  # what is replaced is the machine's resolver, nothing of ours
    try:
        yield
    finally:
        socket.getaddrinfo = real


@asynccontextmanager
async def protected(world: World, *, audience: str = "inference", scope: str = "models.infer") -> AsyncIterator[int]:
    """The port of a service behind the gate that follows this auth's feed; ready for calls."""
    policy = MethodPolicy(method="/examples.greeter.Greeter/Greet", access=TokenAccess(scope))
    identity = world.leaf("service", service=audience)
    auth = f"127.0.0.1:{world.running.port}"
    with Protection(identity=identity, auth=auth, audience=audience, policies=[policy]) as protection:
        greeter = registered(greeter_pb2_grpc.add_GreeterServicer_to_server, servicer.AioGreeter())
        server = protection.aio_server([greeter], address="127.0.0.1:0")
        await server.start()
        try:
            async with asyncio.timeout(SOON):
                while not protection.gate.trust.current.keys:
                    await asyncio.sleep(0.01)
            yield server.port
        finally:
            await server.stop(timedelta(0))


async def greet(directory: Path, port: int, token: str, *, audience: str = "inference") -> str:
    """What the protected service answers to this certificate and token; our own error for its refusal."""
    source = CertificateSource(directory)
    with RotatingChannel(target=f"127.0.0.1:{port}", service_name=audience, source=source) as channel:
        call = greeter_pb2_grpc.GreeterStub(channel).Greet
        request = greeter_pb2.GreetRequest(name="you")
        try:
            answer = await asyncio.to_thread(call, request, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
    return str(answer.greeting)
