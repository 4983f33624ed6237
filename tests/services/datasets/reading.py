"""A client of ours on a world's service: its real classes, with a token that the world makes."""

from __future__ import annotations

import json
from contextlib import contextmanager

import grpc

from casemate.client.datasets import Datasets
from casemate.transport.certificates import load_pair
from tests.services.datasets.world import DOMAIN, OPTIONS, Actor, World, credentials

CHUNKS = tuple(b"%d,name %d\n%d,name %d\n" % (n, n, n + 1000, n + 1000) for n in range(12))
"""Twelve batches of two records."""


class _WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, metadata) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)

    def intercept_unary_stream(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)


class _Session:
    """What `Datasets` asks of a session; the token comes from the world and not from auth."""

    def __init__(self, channel: grpc.Channel, caller: str) -> None:
        self._channel = channel
        self.caller = caller

    def channel(self, _service: str) -> grpc.Channel:
        return self._channel

    def service_name(self, service: str) -> str:
        return f"{service}.{DOMAIN}"


@contextmanager
def datasets_of(world: World, actor: Actor):
    """The client's `Datasets`, for one block. It blocks: call it in a thread."""
    channel = grpc.secure_channel(f"127.0.0.1:{world.running.port}", credentials(actor.directory), OPTIONS)
    try:
        caller = load_pair(actor.directory).spiffe_id
        yield Datasets(_Session(grpc.intercept_channel(channel, _WithToken(actor.metadata)), caller))
    finally:
        channel.close()


async def logged(world: World, kind: str) -> list[dict]:
    """The bodies of the log's entries of one kind, in order."""
    async with world.sql() as sql:
        entries = [json.loads(row["entry"]) for row in await sql.fetch("SELECT entry FROM log_entries ORDER BY index")]
    return [entry["body"] | {"by_service": entry["by"]} for entry in entries if entry["kind"] == kind]
