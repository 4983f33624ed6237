"""Reading for training: shards, shuffles, cursors, receipts, and grants that end while it goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from casemate.client.datasets import BatchOrder, Cursor
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import InvalidRequest, NotFound, SignatureInvalid, StoredDataUnreadable
from casemate.gate.core.records import Effect, Grant
from casemate.signing import merkle
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.checkpoint import parse_verification_key, verification_key
from casemate.signing.export_receipt import verify_export_receipt
from casemate.signing.keys import SigningKey
from casemate.signing.statements import ChunkDigest, Column
from tests.services.datasets.reading import CHUNKS, datasets_of, logged
from tests.services.datasets.world import manifest_of, our_errors

ROWS = [row for chunk in CHUNKS for row in chunk[:-1].split(b"\n")]
BIG = tuple(b"%d,%s\n" % (number, b"x" * 900_000) for number in range(24))
"""Far more than a connection buffers."""


async def pushed(world, chunks=CHUNKS):
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)
    return trainer


async def test_shards_read_every_batch_once_and_each_proves_its_ordinals(world):
    trainer = await pushed(world)

    def read(shard: int, seed: int | None) -> list[tuple[int, int, int]]:
        order = BatchOrder(shard=shard, shards=5, shuffle_seed=seed)
        with datasets_of(world, trainer) as datasets:
            pulled = datasets.pull("digits", tenant="acme", trusted=[world.supplier.public], order=order)
            return [(batch.number, batch.first_ordinal, len(batch.records)) for batch in pulled]

    for seed in (None, 7):
        shards = [await asyncio.to_thread(read, shard, seed) for shard in range(5)]
        assert sorted(found for shard in shards for found in shard) == [(n, 2 * n, 2) for n in range(len(CHUNKS))]
        assert [n for n, _, _ in shards[1]] == BatchOrder(shard=1, shards=5, shuffle_seed=seed).numbers(
            manifest_of(CHUNKS).root, len(CHUNKS)
        )


async def test_a_reading_that_was_cut_goes_on_with_exactly_the_rest(world):
    trainer = await pushed(world)
    order = BatchOrder(shard=1, shards=2, shuffle_seed=42)
    trusted = [world.supplier.public]

    def read() -> tuple[list[int], list[int], list[int]]:
        with datasets_of(world, trainer) as datasets:
            whole = [batch.number for batch in datasets.pull("digits", tenant="acme", trusted=trusted, order=order)]
            pulled = datasets.pull("digits", tenant="acme", trusted=trusted, order=order)
            first = [next(iter(pulled)).number for _ in range(2)]
            kept = pulled.cursor.to_text()
            rest = datasets.resume(Cursor.parse(kept), tenant="acme", trusted=trusted)
            return whole, first, [batch.number for batch in rest]

    whole, first, rest = await asyncio.to_thread(read)
    assert first + rest == whole
    assert len(whole) == 6


async def test_a_cursor_of_another_root_is_not_gone_on_with(world):
    trainer = await pushed(world)

    def resume(cursor: Cursor) -> int:
        with datasets_of(world, trainer) as datasets:
            return len(list(datasets.resume(cursor, tenant="acme", trusted=[world.supplier.public])))

    cursor = Cursor(dataset="digits", version=1, root=manifest_of(CHUNKS).root, order=BatchOrder(position=10))
    assert await asyncio.to_thread(resume, cursor) == 2
    with pytest.raises(StoredDataUnreadable):
        await asyncio.to_thread(resume, replace(cursor, root=bytes(32)))
    kept = cursor.to_text()
    assert Cursor.parse(kept) == cursor
    odd = [kept.replace('"version": 1', f'"version": {number}') for number in (-1, 0, 2**64)]
    odd += [kept.replace("10", '"10"'), kept.replace(cursor.root.hex(), "00")]
    for text in ("", "[]", "{}", '{"dataset":1}', *odd):
        with pytest.raises(InvalidRequest):
            Cursor.parse(text)


async def test_an_order_that_there_is_not_is_refused_and_begins_no_export(world):
    trainer = await pushed(world)
    assert len((await trainer.pull(position=12))[1]) == 0
    for bad in ({"shard": 1}, {"shards": 70_000}, {"position": 13}, {"shuffle_seed": 2**53}):
        with pytest.raises(InvalidRequest):
            await trainer.pull(**bad)
    assert len(await logged(world, "export")) == 1


async def test_an_export_ends_in_a_receipt_that_the_log_has_too(world):
    trainer = await pushed(world)
    pieces = await trainer.pieces(shard=1, shards=3)
    last = pieces[-1].receipt

    log, key = parse_verification_key(last.log_key)
    receipt = verify_export_receipt(last.receipt, log=log, public_key=key).receipt
    assert (receipt.caller, receipt.client) == ("spiffe://casemate.internal/t/acme/trainer", "acme-trainer")
    assert (receipt.version, receipt.root) == (1, manifest_of(CHUNKS).root.hex())
    assert (receipt.shard, receipt.shards, receipt.batches, receipt.rows) == (1, 3, 4, 8)

    begun, ended = (await logged(world, "export"))[0], (await logged(world, "export-end"))[0]
    assert (begun["request"], begun["shard"], begun["root"]) == (receipt.request, 1, receipt.root)
    assert (ended["export"], ended["complete"], ended["batches"]) == (receipt.log_index, True, 4)
    assert ended["receipt_sha256"] == hashlib.sha256(last.receipt).hexdigest()


async def test_a_client_takes_the_receipt_of_its_own_log_key_alone(world):
    trainer = await pushed(world)

    def read(log_key: str | None) -> str:
        with datasets_of(world, trainer) as datasets:
            pulled = datasets.pull("digits", tenant="acme", trusted=[world.supplier.public], log_key=log_key)
            assert pulled.records() == ROWS
            return pulled.receipt.receipt.batches_sha256

    own = verification_key("datasets.casemate.internal/log", world.running.log_key)
    assert await asyncio.to_thread(read, own) == await asyncio.to_thread(read, None)
    stranger = verification_key("datasets.casemate.internal/log", SigningKey.generate().public)
    with pytest.raises(SignatureInvalid):
        await asyncio.to_thread(read, stranger)
    elsewhere = verification_key("datasets.elsewhere/log", world.running.log_key)
    with pytest.raises(StoredDataUnreadable):
        await asyncio.to_thread(read, elsewhere)


async def test_an_export_that_its_reader_cuts_is_in_the_log_as_cut(world):
    trainer = await pushed(world, BIG)
    call = trainer.datasets.PullDataset(messages.PullDatasetRequest(dataset="digits"), metadata=trainer.metadata)
    pieces = aiter(call)
    await anext(pieces)
    await anext(pieces)
    call.cancel()

    async with asyncio.timeout(30):
        while not (ended := await logged(world, "export-end")):
            await asyncio.sleep(0.02)
    assert (ended[0]["complete"], ended[0]["export"]) == (False, 2)
    assert 0 < ended[0]["batches"] < len(BIG)


async def test_a_grant_that_is_taken_away_ends_a_reading_under_way_within_a_second(world):
    trainer = await pushed(world, BIG)
    call = trainer.datasets.PullDataset(messages.PullDatasetRequest(dataset="digits"), metadata=trainer.metadata)
    pieces = aiter(call)
    await anext(pieces)
    assert (await anext(pieces)).batch.number == 0
    world.grants = [grant for grant in world.grants if grant.verb != "read"]
    told = time.monotonic()
    world.tell()

    with pytest.raises(NotFound), our_errors():
        async for _ in pieces:
            pass
    assert time.monotonic() - told < 1
    async with asyncio.timeout(30):
        while not await logged(world, "export-end"):
            await asyncio.sleep(0.02)


async def test_a_grant_that_expires_ends_a_reading_and_gives_no_other(world):
    trainer = await pushed(world)
    world.grants = [
        replace(grant, expires_at=datetime.now(UTC) + timedelta(hours=1)) if grant.verb == "read" else grant
        for grant in world.grants
    ]
    world.tell()
    assert len((await trainer.pull())[1]) == 12
    world.clock.shift = timedelta(minutes=4)  # the token lives for five
    assert len((await trainer.pull())[1]) == 12
    world.grants = [
        replace(grant, expires_at=datetime.now(UTC) + timedelta(minutes=3)) if grant.verb == "read" else grant
        for grant in world.grants
    ]
    world.tell()
    with pytest.raises(NotFound):
        await trainer.pull()


def version_grant(resource: str, effect: Effect = Effect.ALLOW) -> Grant:
    name = f"{effect}-{resource}"
    return Grant(id=name, tenant="acme", caller="t/acme/*", verb="read", resource=resource, effect=effect)


async def test_a_grant_of_one_version_gives_that_version_and_no_other(world):
    trainer = await pushed(world)
    root = manifest_of(CHUNKS).root
    await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    whole = world.grants
    world.grants = [*(grant for grant in whole if grant.verb != "read"), version_grant("dataset/digits/1")]
    world.tell()

    assert len((await trainer.pull(version=1))[1]) == 12
    assert (await trainer.version(version=1)).version == 1
    for version in (0, 2):
        with pytest.raises(NotFound):
            await trainer.pull(version=version)
        with pytest.raises(NotFound):
            await trainer.version(version=version)

    world.grants = [*whole, version_grant("dataset/digits/2", Effect.DENY)]
    world.tell()
    assert len((await trainer.pull(version=1))[1]) == 12
    for version in (0, 2):  # the newest is the one that is taken away, whether it is named or not
        with pytest.raises(NotFound):
            await trainer.pull(version=version)


async def test_a_version_taken_away_while_it_is_read_as_the_newest_ends_the_reading(world):
    trainer = await pushed(world, BIG)
    call = trainer.datasets.PullDataset(messages.PullDatasetRequest(dataset="digits"), metadata=trainer.metadata)
    pieces = aiter(call)
    await anext(pieces)
    world.grants = [*world.grants, version_grant("dataset/digits/1", Effect.DENY)]
    world.tell()
    with pytest.raises(NotFound), our_errors():
        async for _ in pieces:
            pass


MIXED = (
    Column(name="n", type="integer", minimum=0),
    Column(name="x", type="number", nullable=True),
    Column(name="t", type="text"),
    Column(name="at", type="timestamp"),
    Column(name="raw", type="bytes"),
    Column(name="ok", type="boolean"),
    Column(name="v", type="vector"),
)


VALUES = {
    "n": 3,
    "x": None,
    "t": "a,b",
    "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "raw": b"\x01\x02",
    "ok": True,
    "v": [1.5, 2.0],
}


def written(encoding: str, columns) -> tuple[bytes, dict[str, object]]:
    """Two records as one chunk in a format, and what the manifest says of the chunk."""
    if encoding == "arrow":
        batch = pa.RecordBatch.from_pylist([VALUES, VALUES], schema=arrow_schema(columns))
        chunk = batch.serialize().to_pybytes()
        digest = ChunkDigest(leaf_hash=merkle.leaf_hash(chunk), bytes=len(chunk), rows=1, records=2)
        return chunk, {"chunks": (digest,), "rows": 1, "bytes": len(chunk), "root": digest.leaf_hash}
    line = b'3,,"a,b",2026-01-02T03:04:05+00:00,AQI=,true\n'
    if encoding == "jsonl":
        line = json.dumps(VALUES | {"at": "2026-01-02T03:04:05+00:00", "raw": "AQI="}).encode() + b"\n"
    return line * 2, {}


@pytest.mark.parametrize("encoding", ["csv", "jsonl", "arrow"])
async def test_the_client_gives_arrow_and_pandas_of_the_declared_columns(world, encoding):
    columns = MIXED[:-1] if encoding == "csv" else MIXED  # CSV has no form for vectors
    chunk, digests = written(encoding, columns)
    digests = {"format": encoding, "schema": columns, **digests}
    manifest = replace(manifest_of(), **digests) if encoding == "arrow" else manifest_of((chunk,), **digests)
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest), (chunk,))

    def read():
        with datasets_of(world, trainer) as datasets:
            pulls = [datasets.pull("digits", tenant="acme", trusted=[world.supplier.public]) for _ in range(2)]
            return list(pulls[0].arrow()), list(pulls[1].pandas())

    batches, frames = await asyncio.to_thread(read)
    assert [batch.num_rows for batch in batches] == [len(frame) for frame in frames] == [2]
    assert batches[0].schema.equals(arrow_schema(columns))
    assert batches[0].to_pylist() == [{column.name: VALUES[column.name] for column in columns}] * 2
    assert frames[0]["n"].tolist() == [3, 3]
