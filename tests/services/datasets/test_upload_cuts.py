"""Uploads that break off anywhere, and often: what was acknowledged is stored, and the rest is still taken."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.errors import DigestMismatch, InvalidRequest, NotFound, OutOfRange, Unavailable
from casemate.signing import merkle
from tests.services.datasets.pushing import nothing_changes, uploads
from tests.services.datasets.reading import logged
from tests.services.datasets.world import (
    CHUNKS,
    FINISH,
    OPTIONS,
    chunk_messages,
    credentials,
    manifest_message,
    manifest_of,
)

LARGE = (b"1,one\n2,two\n", b"3,%s\n" % (b"x" * 900_000), b"4,four\n")


class Wire:
    """A network between a client and the service, which can be cut or held up while bytes are on their way."""

    def __init__(self) -> None:
        self.left = 1 << 62  # bytes towards the service that still pass
        self.full = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def to(self, port: int):
        """Listens, and gives its own port."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, onward = await asyncio.open_connection("127.0.0.1", port)
            self._writers += [writer, onward]
            with suppress(OSError):
                await asyncio.gather(self._pass(reader, onward, counted=True), self._pass(back, writer, counted=False))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.cut()
            server.close()
            await server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        while data := await reader.read(16_384):
            if counted and len(data) > self.left:
                self.full.set()
                return  # what did not pass is lost, and the connection stands
            self.left -= len(data) if counted else 0
            writer.write(data)
            await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Ends every connection as a pulled plug does."""
        for writer in self._writers:
            writer.transport.abort()


@pytest.mark.parametrize("ends", ["cut", "held up"])
async def test_a_client_that_breaks_off_or_stops_within_a_chunk_leaves_what_was_acknowledged(world, ends):
    """E3, within a chunk; held up, it keeps no other writer of the same upload waiting."""
    actor, wire = world.actor(), Wire()
    envelope = world.signed(manifest_of(LARGE))
    async with (
        wire.to(world.running.port) as port,
        grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials(actor.directory), OPTIONS) as channel,
    ):
        call = DatasetServiceStub(channel).PushDataset(metadata=actor.metadata)
        for message in (manifest_message(envelope), chunk_messages(LARGE)[0]):
            await call.write(message)
            await call.read()
        wire.left = 300_000
        sending = asyncio.create_task(call.write(chunk_messages(LARGE)[1]))
        await asyncio.wait_for(wire.full.wait(), 30)

        if ends == "cut":
            wire.cut()
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
        assert await uploads(world) == [(1, "receiving", 12, 2)]
        with pytest.raises(NotFound):
            await actor.pull()

        answers = await actor.push([manifest_message(envelope), *chunk_messages(LARGE)[1:], FINISH])

        sending.cancel()
        call.cancel()
    assert answers[0].next_offset == 12
    assert answers[-1].promoted.rows == 4
    assert await uploads(world) == [(1, "promoted", sum(map(len, LARGE)), 4)]
    assert len(await logged(world, "promotion")) == 1


async def test_a_chunk_of_another_length_than_was_signed_is_refused_and_the_right_one_is_still_taken(world):
    actor, envelope = world.actor(), world.signed()
    for wrong in (CHUNKS[0][:-1], CHUNKS[0][:6], CHUNKS[0] + b"\n", CHUNKS[0] + CHUNKS[1], b""):
        with pytest.raises(DigestMismatch):
            await actor.push([manifest_message(envelope), *chunk_messages([wrong])])
        assert await uploads(world) == [(1, "receiving", 0, 0)]
    assert (await actor.push_all(envelope)).rows == 6


async def test_a_clock_that_is_wrong_by_less_than_the_manifest_allows_harms_nothing(world):
    """By more, nothing is begun, and both times are said; by the supplier's clock nothing is judged at all."""
    actor = world.actor()
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    for number, seconds in enumerate((-4, 240)):  # what a token allows for
        world.clock.shift = timedelta(seconds=seconds)
        manifest = manifest_of(dataset=f"d{number}", expires_at=expires_at)
        assert (await actor.push_all(world.signed(manifest), dataset=f"d{number}")).version == 1
    world.clock.shift = timedelta(minutes=4)
    late = world.signed(manifest_of(expires_at=datetime.now(UTC) + timedelta(minutes=3)))
    async with nothing_changes(world):
        with pytest.raises(InvalidRequest) as caught:
            await actor.push([manifest_message(late)])
    assert caught.value.violations[0].field == "expires_at"
    world.clock.shift = timedelta(minutes=2)
    assert (await actor.push_all(late)).version == 1


async def _stormy(world, count: int, seed: int) -> dict[str, int]:
    """One upload of so many chunks, broken off, repeated, misplaced and raced until it is through."""
    chunks = [b"%d,chunk\n%d,of two\n" % (number, number) for number in range(count)]
    manifest = manifest_of(chunks)
    envelope, chance, told = world.signed(manifest), random.Random(seed), dict.fromkeys(FAULTS, 0)  # noqa: S311  # not for secrets
    actors, messages = [world.actor(f"w{number}") for number in range(3)], chunk_messages(chunks)

    async def part(actor, fault: str) -> None:
        async with world.sql() as sql:
            known = await sql.fetchval("SELECT coalesce(max(next_batch), 0) FROM uploads WHERE state = 'receiving'")
        steps = messages[known : known + chance.randint(1, min(250, count // 5))]
        if fault == "sent again" and known:
            steps = messages[chance.randrange(max(0, known - 50), known) : known] + steps
        elif fault == "gap":
            steps = [*steps, *messages[known + len(steps) + 1 :][:1]]
        elif fault == "other bytes":
            steps = [*steps, *chunk_messages([b"0,changed\n"] * 2)[:1]]
            steps[-1].chunk.offset = steps[-2].chunk.offset + len(steps[-2].chunk.data)
        elif fault == "finish":
            steps = [*steps, FINISH]
        elif fault == "database":
            async with world.sql() as sql:
                cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
                await sql.execute(cut, world.settings.database.user)
        with suppress(OutOfRange, DigestMismatch, Unavailable):
            await actor.push([manifest_message(envelope), *steps])
        told[fault] += 1

    async with asyncio.timeout(max(60, count * 0.2)):
        while (await uploads(world) or [(1, "receiving", 0, 0)])[0][2] < manifest.bytes:
            fault = chance.choice(FAULTS)
            # Other bytes where another writer has just stored some would be equivocation, and rightly the end.
            alone = fault == "other bytes" or chance.random() < 0.6
            others = [] if alone else [part(actors[1], chance.choice(TOGETHER))]
            await asyncio.gather(part(actors[0], fault), *others)
        while True:
            try:
                promoted = (await actors[2].push([manifest_message(envelope), FINISH]))[-1].promoted
                break
            except Unavailable:
                await asyncio.sleep(0.05)
    assert (promoted.rows, promoted.root) == (2 * count, manifest.root)
    assert await uploads(world) == [(1, "promoted", manifest.bytes, 2 * count)]
    batches = (await actors[2].pull())[1]
    assert [row for batch in batches for row in batch.records] == b"".join(chunks)[:-1].split(b"\n")
    assert merkle.root([merkle.leaf_hash(chunk) for chunk in chunks]) == promoted.root
    assert len(await logged(world, "promotion")) == 1
    return told


TOGETHER = ("broken off", "sent again", "gap", "finish", "database")
FAULTS = (*TOGETHER, "other bytes")


async def test_an_upload_of_many_chunks_through_random_faults_is_whole_and_in_there_once(world):
    assert sum((await _stormy(world, 150, seed=6)).values()) > 4


@pytest.mark.long
async def test_ten_thousand_chunks_through_random_faults_are_whole_and_in_there_once(world, tell_record):
    told = await _stormy(world, 10_000, seed=7)
    assert set(told) == set(FAULTS)
    tell_record(f"10,000 chunks through {sum(told.values())} parts: {told}")
