"""Chunks that are copied while those before them are still being stored: what counts, and what is undone."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import Conflict, OutOfRange, Reason, Unavailable
from services.datasets import push
from services.datasets.store import VersionStore
from tests.services.datasets.pushing import uploads
from tests.services.datasets.reading import logged
from tests.services.datasets.world import FINISH, chunk_messages, manifest_message, manifest_of, our_errors

CHUNKS = tuple(b"%d,n\n" % number for number in range(40, 52))
SIZE = len(CHUNKS[0])
PATIENCE = 30.0
COPIED_AND_WAITING = "state = 'idle in transaction' AND query LIKE 'COPY%'"
WAITING_FOR_A_LOCK = "wait_event_type = 'Lock'"


class Stream:
    """One call that sends without waiting for answers."""

    def __init__(self, actor) -> None:
        self.call = actor.datasets.PushDataset(metadata=actor.metadata)

    async def send(self, *requests: messages.PushDatasetRequest) -> None:
        for request in requests:
            await self.call.write(request)

    async def begin(self, envelope: bytes) -> int:
        await self.send(manifest_message(envelope))
        return (await self.call.read()).next_offset

    async def answers(self) -> list[messages.PushDatasetResponse]:
        answers: list[messages.PushDatasetResponse] = []
        with our_errors():
            while (answer := await self.call.read()) is not grpc.aio.EOF:
                answers.append(answer)
        return answers


@asynccontextmanager
async def upload_held(world):
    """The upload's row is somebody else's for the length of the block: what is to be stored waits."""
    async with world.sql() as sql:
        stuck = sql.transaction()
        await stuck.start()
        await sql.execute("SELECT FROM uploads FOR UPDATE")
        yield
        await stuck.rollback()


async def until_there_are(world, count: int, what: str) -> None:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {what}"  # noqa: S608  # names above
    async with world.sql() as sql, asyncio.timeout(PATIENCE):
        while await sql.fetchval(query) != count:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def one_group_copied_behind_another(world):
    """A stream whose first chunks wait for the upload, and whose next ones are copied meanwhile."""
    stream = Stream(world.actor())
    assert await stream.begin(world.signed(manifest_of(CHUNKS))) == 0
    async with upload_held(world):
        await stream.send(*chunk_messages(CHUNKS))
        await until_there_are(world, 1, COPIED_AND_WAITING)
        await until_there_are(world, 1, WAITING_FOR_A_LOCK)
        assert await uploads(world) == [(1, "receiving", 0, 0)], "nothing of it is seen"
        yield stream


async def test_chunks_are_copied_while_those_before_them_wait_and_acknowledged_in_order(world):
    async with one_group_copied_behind_another(world) as stream:
        pass
    await stream.send(FINISH)
    await stream.call.done_writing()
    answers = await stream.answers()
    offsets = [answer.next_offset for answer in answers[:-1]]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(CHUNKS)
    assert answers[-1].promoted.rows == len(CHUNKS)
    _, batches = await world.actor().pull()
    assert [list(batch.records) for batch in batches] == [[chunk[:-1]] for chunk in CHUNKS]


async def test_what_was_copied_behind_chunks_that_fail_is_undone(world):
    envelope = world.signed(manifest_of(CHUNKS))
    async with one_group_copied_behind_another(world) as stream, world.sql() as sql:
        await sql.fetch(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITING_FOR_A_LOCK}")  # noqa: S608  # as above
        with pytest.raises(Unavailable):
            await stream.answers()
    await until_there_are(world, 0, COPIED_AND_WAITING)
    assert await uploads(world) == [(1, "receiving", 0, 0)]
    assert (await world.actor().push_all(envelope, CHUNKS)).rows == len(CHUNKS)


async def test_what_was_copied_is_not_stored_in_an_upload_that_was_quarantined_meanwhile(world):
    envelope = world.signed(manifest_of(CHUNKS))
    await world.actor().push([manifest_message(envelope), chunk_messages(CHUNKS)[0]])
    stream, liar = Stream(world.actor()), Stream(world.actor("liar"))
    assert [await each.begin(envelope) for each in (stream, liar)] == [SIZE, SIZE]
    other = chunk_messages(CHUNKS)[0]
    other.chunk.data = other.chunk.data.upper()
    async with upload_held(world):
        await stream.send(*chunk_messages(CHUNKS)[1:])
        await until_there_are(world, 1, COPIED_AND_WAITING)
        await until_there_are(world, 1, WAITING_FOR_A_LOCK)
        await liar.send(other)
        await until_there_are(world, 2, WAITING_FOR_A_LOCK)
    for each in (liar, stream):
        with pytest.raises(Conflict) as refused:
            await each.answers()
        assert refused.value.reason is Reason.EQUIVOCATION
    ((_, state, offset, rows),) = await uploads(world)
    assert (state, offset) == ("quarantined", rows * SIZE)
    assert 1 < rows < len(CHUNKS), "the chunks before it are stored, what was copied behind them is not"


@pytest.mark.parametrize("reason", ["no patience", "no connection to spare"])
async def test_chunks_that_cannot_be_copied_ahead_are_stored_in_their_turn(world, monkeypatch, reason):
    if reason == "no patience":
        monkeypatch.setattr(push, "_PATIENCE_SECONDS", 0.0)
    else:
        monkeypatch.setattr(VersionStore, "at_ease", False)
    stream = Stream(world.actor())
    await stream.begin(world.signed(manifest_of(CHUNKS)))
    await stream.send(*chunk_messages(CHUNKS), FINISH)
    await stream.call.done_writing()
    assert (await stream.answers())[-1].promoted.rows == len(CHUNKS)


async def test_a_chunk_left_out_between_two_groups_is_missed_and_what_came_before_it_is_kept(world):
    envelope = world.signed(manifest_of(CHUNKS))
    stream = Stream(world.actor())
    await stream.begin(envelope)
    said = chunk_messages(CHUNKS)
    async with upload_held(world):
        await stream.send(*said[:1])
        await until_there_are(world, 1, WAITING_FOR_A_LOCK)
        await stream.send(*said[2:])
    with pytest.raises(OutOfRange):
        await stream.answers()
    assert await uploads(world) == [(1, "receiving", SIZE, 1)]
    assert (await world.actor().push_all(envelope, CHUNKS)).rows == len(CHUNKS)


async def test_streams_of_one_upload_that_overtake_one_another_store_it_once(world):
    many = tuple(b"%d,n\n" % number for number in range(1000, 1060))
    envelope = world.signed(manifest_of(many))

    streams = [Stream(world.actor(f"w{number}")) for number in range(3)]
    assert [await stream.begin(envelope) for stream in streams] == [0, 0, 0]

    async def push_it(stream: Stream) -> int:
        await stream.send(*chunk_messages(many))
        await stream.call.done_writing()
        return len(await stream.answers())

    counts = await asyncio.gather(*map(push_it, streams))
    assert counts == [len(many)] * 3, "every chunk of every stream was acknowledged"
    assert await uploads(world) == [(1, "receiving", len(many) * len(many[0]), len(many))]
    assert (await world.actor().push([manifest_message(envelope), FINISH]))[-1].promoted.rows == len(many)
    assert len(await logged(world, "promotion")) == 1
