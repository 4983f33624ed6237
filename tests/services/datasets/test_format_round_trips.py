"""Files of every format through our own client, mutual TLS, a sealed PostgreSQL, and back, to the byte."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from pyarrow import parquet

from casemate.client.dataset_files import CutChunk, DatasetFile, open_dataset_file
from casemate.errors import AlreadyExists, DigestMismatch, InvalidRequest, Reason, Unavailable
from casemate.signing import merkle
from casemate.signing.arrow_form import arrow_stream
from casemate.signing.columns import Column
from casemate.signing.keys import SigningKey
from casemate.signing.statements import ChunkDigest, sign_dataset_manifest
from tests.services.datasets.push_callers import client_of
from tests.services.datasets.world import FINISH, chunk_messages, manifest_message, manifest_of, our_errors

TABLE = pa.table(
    {
        "id": pa.array(range(2500), pa.int16()),
        "label": pa.array(["cat", "dog", None, "cat", "dog"] * 500),
        "embedding": pa.array([[n / 7, -n] for n in range(2500)], pa.list_(pa.float32())),
        "image": pa.array([bytes([n % 256]) * 300 for n in range(2499)] + [bytes(3 << 20)], pa.binary()),
        "seen": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 2500, pa.timestamp("us", "UTC")),
    }
)


def write_files(directory):
    """One file of each format, and the rows that must come back."""
    table = [f'{n},"line {n}\r\nand ""more"", of it",{n / 4},{str(n % 2 == 0).lower()}' for n in range(3000)]
    (directory / "a.csv").write_bytes("\r\n".join(["id,text,share,even", *table]).encode())
    yield "a.csv", [row.encode() for row in table]
    turns = [[{"role": "user", "text": "hé" * (n % 9)}] for n in range(3000)]
    lines = [json.dumps({"id": n, "turns": turn, "third": n / 3}) for n, turn in enumerate(turns)]
    (directory / "b.jsonl").write_bytes("\n".join(lines).encode())
    yield "b.jsonl", [line.encode() for line in lines]
    with pa.OSFile(str(directory / "c.arrow"), "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=700)
    yield "c.arrow", None
    parquet.write_table(TABLE, directory / "d.parquet")
    yield "d.parquet", None


async def test_a_file_of_each_format_comes_back_as_it_was_signed(world, tmp_path):
    with client_of(world) as client:
        for name, expected in write_files(tmp_path):
            file, told = open_dataset_file(tmp_path / name), []
            manifest = await asyncio.to_thread(client.manifest_of, file, tenant="acme", dataset=name[0])
            done = await asyncio.to_thread(
                client.push_file, file, manifest=manifest, signing_key=world.supplier, progress=told.append
            )
            assert (done.version, done.root, done.rows) == (1, manifest.root, manifest.rows)
            assert told == sorted(set(told))
            assert told[-1] == manifest.bytes
            batches = (await world.actor().pull(name[0]))[1]
            rows = [row for batch in batches for row in batch.records]
            if expected is None:
                read = pa.ipc.open_stream(b"".join(arrow_stream(rows, manifest.schema))).read_all()
                read.validate(full=True)
                assert read.to_pydict() == TABLE.to_pydict()
                assert manifest.records == 2500 > manifest.rows > 3
            else:
                assert rows == expected
                assert manifest.records == manifest.rows == 3000


def of_chunks(*chunks: CutChunk, encoding: str, schema) -> DatasetFile:
    return DatasetFile(encoding, tuple(schema), lambda: iter(chunks))


def arrow_chunk(values, records=None) -> CutChunk:
    row = pa.record_batch([pa.array(values, pa.int64())], names=["id"]).serialize().to_pybytes()
    return CutChunk(row, 1, len(values) if records is None else records)


IDS = (Column(name="id", type="integer", maximum=10),)


@contextmanager
def refusal(reason: Reason):
    with pytest.raises(InvalidRequest) as caught:
        yield caught
    assert caught.value.reason is reason


async def test_what_is_signed_and_wrong_is_refused_by_record_and_leaves_nothing_readable(world):
    bad = of_chunks(arrow_chunk([1, 2]), arrow_chunk([3, 11]), encoding="arrow", schema=IDS)
    lying = of_chunks(arrow_chunk([1, 2], records=3), encoding="arrow", schema=IDS)
    trailing = of_chunks(CutChunk(arrow_chunk([1]).data + b"\x00", 1, 1), encoding="arrow", schema=IDS)
    other = of_chunks(CutChunk(b'{"id":1}\n', 1), encoding="csv", schema=IDS)
    nul = of_chunks(CutChunk(b"a\x00b\n", 1), encoding="csv", schema=[Column(name="t", type="text")])
    latin = of_chunks(CutChunk(b"\xe9\n", 1), encoding="csv", schema=[Column(name="t", type="text")])
    nan = of_chunks(CutChunk(b'{"n":NaN}\n', 1), encoding="jsonl", schema=[Column(name="n", type="number")])
    big = of_chunks(CutChunk(b'{"n":%d}\n' % 2**63, 1), encoding="jsonl", schema=[Column(name="n", type="integer")])
    cases = {
        bad: (Reason.RECORD_INVALID, "records[3].id"),
        lying: (Reason.MANIFEST_INVALID, "chunks[0].records"),
        trailing: (Reason.RECORD_INVALID, "chunks[0]"),
        other: (Reason.RECORD_INVALID, "records[0]"),
        nul: (Reason.RECORD_INVALID, "records[0]"),
        latin: (Reason.RECORD_INVALID, "records[0]"),
        nan: (Reason.RECORD_INVALID, "records[0]"),
        big: (Reason.RECORD_INVALID, "records[0].n"),
    }
    with client_of(world) as client:
        for file, (reason, field) in cases.items():
            manifest = await asyncio.to_thread(client.manifest_of, file, tenant="acme", dataset="d")
            with refusal(reason) as caught:
                await asyncio.to_thread(client.push_file, file, manifest=manifest, signing_key=world.supplier)
            assert caught.value.violations[0].field == field
        good = of_chunks(arrow_chunk([1, 2]), encoding="arrow", schema=IDS)
        manifest = await asyncio.to_thread(client.manifest_of, good, tenant="acme", dataset="d")
        done = await asyncio.to_thread(client.push_file, good, manifest=manifest, signing_key=world.supplier)
    assert done.version == 1, "of those before, none became a version"
    async with world.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM uploads WHERE state = 'promoted'") == 1


async def test_chunks_before_a_bad_one_are_kept_and_those_behind_it_are_not(world):
    """They are judged ahead of being stored, and still each at its place."""
    chunks = [b"1,one\n", b"2,two\n", b"3,three\n", b"4,four\n"]
    envelope = world.signed(manifest_of(chunks))
    messages = chunk_messages([*chunks[:2], b"3,thrEE\n", chunks[3]])
    trainer = world.actor()
    call = trainer.datasets.PushDataset(metadata=trainer.metadata)
    for message in [manifest_message(envelope), *messages, FINISH]:
        await call.write(message)
    with pytest.raises(DigestMismatch), our_errors():
        async for _ in call:
            pass

    answers = await trainer.push([manifest_message(envelope)])

    assert answers[0].next_offset == len(chunks[0] + chunks[1])
    answers = await trainer.push([manifest_message(envelope), *chunk_messages(chunks)[2:], FINISH])
    assert answers[-1].promoted.rows == 4


async def test_a_chunk_of_eight_mebibytes_is_taken_and_a_larger_message_is_refused(world):
    line = b"x" * 1023 + b"\n"
    chunk = line * (8 << 10)
    schema = (Column(name="t", type="text"),)
    trainer = world.actor()
    manifest = manifest_of([chunk], schema=schema)

    promoted = await trainer.push_all(world.signed(manifest), [chunk])

    assert promoted.rows == 8 << 10
    with pytest.raises(InvalidRequest):
        ChunkDigest.of(chunk + line)
    call = trainer.datasets.PushDataset(metadata=trainer.metadata)
    await call.write(manifest_message(world.signed(replace(manifest, version=2, previous_root=manifest.root))))
    assert (await call.read()).next_offset == 0
    await call.write(chunk_messages([chunk + chunk[: 1 << 20]])[0])
    assert (await call.code()).name == "RESOURCE_EXHAUSTED"


async def test_a_push_goes_on_by_itself_where_the_service_lost_its_database(world, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"t\n" + b"\n".join([b"x" * 1000] * 6000) + b"\n")
    whole, loop, cut = open_dataset_file(path), asyncio.get_running_loop(), []

    async def lose_it():
        async with world.sql() as sql:
            await sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1",
                world.settings.database.user,
            )

    def interrupted():
        for number, chunk in enumerate(whole.chunks()):
            if number == 3 and not cut:
                cut.append(asyncio.run_coroutine_threadsafe(lose_it(), loop).result(30))
            yield chunk

    with client_of(world) as client:
        manifest = await asyncio.to_thread(client.manifest_of, whole, tenant="acme", dataset="d")
        file = replace(whole, chunks=interrupted)
        done = await asyncio.to_thread(client.push_file, file, manifest=manifest, signing_key=world.supplier)

    assert cut == [None]
    assert done.rows == 6000
    assert sum(len(batch.records) for batch in (await world.actor().pull("d"))[1]) == 6000


async def test_a_push_is_repeated_only_where_repeating_can_help(stopped_world, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"t\nx\n")
    push = {"signing_key": stopped_world.supplier, "retry_waits": (0, 0, 0)}
    with ExitStack() as open_clients:
        async with stopped_world.serve():
            client = open_clients.enter_context(client_of(stopped_world))
            file, calls = open_dataset_file(path), []
            counted = replace(file, chunks=lambda: calls.append(1) or file.chunks())
            manifest = await asyncio.to_thread(client.manifest_of, file, tenant="acme", dataset="d")
            other = replace(manifest.chunks[0], leaf_hash=bytes(32))
            changed = replace(manifest, root=merkle.root([bytes(32)]), chunks=(other,))
            with pytest.raises(DigestMismatch):
                await asyncio.to_thread(client.push_file, counted, manifest=changed, **push)
            assert len(calls) == 1
        with pytest.raises(Unavailable):
            await asyncio.to_thread(client.push_file, counted, manifest=manifest, **push)
        assert len(calls) == 5


@pytest.mark.parametrize("quarantined", [True, False], ids=["the latest is quarantined", "without a grant to read"])
async def test_who_cannot_read_the_latest_version_learns_what_comes_next_and_pushes_it(world, quarantined):
    root = (await world.actor().push_all(world.signed())).root
    key = SigningKey.generate()
    if quarantined:
        world.signers = [world.signer(world.supplier, compromised_since=datetime(2021, 1, 1, tzinfo=UTC))]
    else:
        world.grants = [grant for grant in world.grants if grant.verb == "push"]
    world.signers = [*world.signers, world.signer(key)]
    world.tell()
    file = of_chunks(CutChunk(b'{"id":1}\n', 1), encoding="jsonl", schema=IDS)

    with client_of(world) as client:
        manifest = await asyncio.to_thread(client.manifest_of, file, tenant="acme", dataset="digits")
        assert manifest.version == 1
        with pytest.raises(AlreadyExists) as caught:
            await asyncio.to_thread(
                client.push_envelope, sign_dataset_manifest(manifest, key), iter(()), dataset="digits"
            )
        assert [violation.description for violation in caught.value.violations] == ["2", root.hex()]
        strict = {"manifest": manifest, "signing_key": key, "take_number": False}
        with pytest.raises(AlreadyExists):  # for who takes nobody's word for what comes next
            await asyncio.to_thread(client.push_file, file, **strict)
        done = await asyncio.to_thread(client.push_file, file, manifest=manifest, signing_key=key)
    assert done.version == 2
    async with world.sql() as sql:
        found = await sql.fetch("SELECT version, state FROM uploads ORDER BY version")
        assert [tuple(row) for row in found] == [(1, "promoted"), (2, "promoted")]
