"""Faults of the database and lies of a client: the status that each ends in, and what is true afterwards."""

from __future__ import annotations

import asyncio

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import (
    AlreadyExists,
    CasemateError,
    Code,
    Conflict,
    InvalidRequest,
    NotFound,
    OutOfRange,
    Unavailable,
)
from services.datasets import database
from services.datasets.store import VersionStore
from tests.services.datasets.pushing import nothing_changes, uploads
from tests.services.datasets.reading import logged
from tests.services.datasets.world import CHUNKS, FINISH, chunk_messages, manifest_message, manifest_of, our_errors

PATIENCE = 30.0
POOL = 8
"""Connections that a service keeps to a database."""

TRAILING = messages.PushDatasetRequest(chunk=messages.Chunk(offset=40, data=b"7,seven\n"))
"""Behind the last chunk of the manifest."""


async def progress(world) -> list[tuple[str, int, int]]:
    """State, offset and stored rows of every upload."""
    return [upload[1:] for upload in await uploads(world)]


async def until_pushed(actor, envelope: bytes) -> None:
    """After a fault: the pool may first have to find out."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert (await actor.push_all(envelope)).rows == 6
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_an_upload_that_is_cut_at_any_chunk_shows_nothing_and_goes_on(world):
    """E3."""
    actor = world.actor()
    for cut in range(len(CHUNKS) + 1):
        dataset = f"d{cut}"
        envelope = world.signed(manifest_of(dataset=dataset))
        await actor.push([manifest_message(envelope, dataset), *chunk_messages()[:cut]])
        with pytest.raises(NotFound):
            await actor.pull(dataset)
        answers = await actor.push([manifest_message(envelope, dataset), *chunk_messages()[cut:], FINISH])
        assert answers[-1].promoted.rows == 6
        assert len((await actor.pull(dataset))[1]) == 3


@pytest.mark.parametrize(
    ("steps", "refusal", "left"),
    [
        ([FINISH], OutOfRange, ("receiving", 0, 0)),
        ([*chunk_messages()[:2], FINISH], OutOfRange, ("receiving", 20, 3)),
        ([*chunk_messages(), TRAILING], OutOfRange, ("receiving", 40, 6)),
        ([chunk_messages()[1]], OutOfRange, ("receiving", 0, 0)),
        ([chunk_messages()[0], chunk_messages()[2]], OutOfRange, ("receiving", 12, 2)),
    ],
    ids=["at-once", "early", "trailing", "reordered", "dropped"],
)
async def test_an_end_or_a_chunk_out_of_place_is_refused_and_the_rest_is_still_taken(world, steps, refusal, left):
    """E4, E5, E6."""
    actor = world.actor()
    envelope = world.signed()
    with pytest.raises(refusal):
        await actor.push([manifest_message(envelope), *steps])
    assert await progress(world) == [left]
    assert await logged(world, "promotion") == []
    assert (await actor.push_all(envelope)).rows == 6


async def test_two_ends_promote_once(world):
    """E5."""
    actor = world.actor()
    envelope = world.signed()
    first = await actor.push_all(envelope)
    again = await actor.push([manifest_message(envelope), FINISH])
    assert again[-1].promoted == first
    assert len(await logged(world, "promotion")) == 1


@pytest.mark.parametrize(
    ("sqlstate", "code"),
    [
        ("53100", Code.UNAVAILABLE),  # disk full
        ("53300", Code.UNAVAILABLE),  # too many connections
        ("57014", Code.UNAVAILABLE),  # a statement that took too long
        ("40001", Code.ABORTED),  # a serialization failure
        ("40P01", Code.ABORTED),  # a deadlock
        ("55P03", Code.ABORTED),  # a lock not granted in time
    ],
)
async def test_what_the_database_refuses_stores_nothing_reads_go_on_and_it_recovers_by_itself(world, sqlstate, code):
    """E20, E21: PostgreSQL itself raises what it raises when its disk is full or transactions collide."""
    actor = world.actor()
    await actor.push_all(world.signed())
    second = world.signed(manifest_of(version=2, previous_root=manifest_of().root))
    async with world.sql() as sql:
        await sql.execute(
            "CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'planted-text' USING ERRCODE = '{sqlstate}'; END $$"
        )
        await sql.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON sealed_rows FOR EACH ROW EXECUTE FUNCTION refuse_rows()"
        )
        with pytest.raises(CasemateError) as refused:
            await actor.push([manifest_message(second), *chunk_messages()])
        assert refused.value.code is code
        assert "planted" not in str(refused.value)
        assert await progress(world) == [("promoted", 40, 6), ("receiving", 0, 0)]
        assert len((await actor.pull())[1]) == 3
        await sql.execute("DROP TRIGGER full_disk ON sealed_rows")
    await until_pushed(actor, second)


async def test_a_transaction_that_holds_the_upload_is_waited_for_and_costs_no_one_else(world):
    """E21: a stuck transaction."""
    actor = world.actor()
    envelope = world.signed()
    await actor.push([manifest_message(envelope), *chunk_messages()[:1]])
    async with world.sql() as sql:
        stuck = sql.transaction()
        await stuck.start()
        await sql.execute("SELECT FROM uploads FOR UPDATE")
        waiting = asyncio.create_task(actor.push_all(envelope))
        letters = world.signed(manifest_of(dataset="letters"))
        assert (await actor.push_all(letters, dataset="letters")).rows == 6
        assert not waiting.done()
        await stuck.rollback()
    assert (await waiting).rows == 6


async def test_when_every_connection_is_stuck_the_next_call_is_told_so_and_the_pool_comes_back(world, monkeypatch):
    """E21: the pool exhausted. The wait is bounded; it is ten seconds, and shortened here."""
    monkeypatch.setattr(database, "_WAIT_SECONDS", 0.5)
    actor = world.actor()
    await actor.push_all(world.signed())
    envelopes = {f"d{number}": world.signed(manifest_of(dataset=f"d{number}")) for number in range(POOL)}
    for name, envelope in envelopes.items():
        await actor.push([manifest_message(envelope, name)])
    async with world.sql() as sql, world.sql() as onlooker:
        stuck = sql.transaction()
        await stuck.start()
        await sql.execute("SELECT FROM uploads FOR UPDATE")
        waiting = [asyncio.create_task(actor.push_all(envelope, dataset=name)) for name, envelope in envelopes.items()]
        locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = $1"
        async with asyncio.timeout(PATIENCE):
            while await onlooker.fetchval(locked, world.settings.database.user) < POOL:
                await asyncio.sleep(0.02)
        with pytest.raises(Unavailable):
            await actor.version()
        assert not any(task.done() for task in waiting)
        await stuck.rollback()
    assert [(await task).rows for task in waiting] == [6] * len(envelopes)
    assert (await actor.version()).version == 1
    assert await progress(world) == [("promoted", 40, 6)] * (1 + len(envelopes))


async def test_a_failover_to_a_read_only_server_is_unavailable_and_the_way_back_is_found(world):
    """E22: sessions are cut, the server that answers takes no writes for a while, then it does."""
    actor = world.actor()
    await actor.push_all(world.signed())
    second = world.signed(manifest_of(version=2, previous_root=manifest_of().root))
    name = world.settings.database.name
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
    async with world.sql() as sql:
        try:
            await sql.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
            await sql.fetch(cut, name)
            # An idle connection that was cut is one refusal; those after it are of the server that was found.
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await actor.push_all(second)
                with pytest.raises(Unavailable):
                    await actor.pull()
        finally:
            await sql.execute("SET default_transaction_read_only = off")
            await sql.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        assert await progress(world) == [("promoted", 40, 6)]
    await until_pushed(actor, second)
    assert len((await actor.pull(version=1))[1]) == 3


async def test_a_table_that_changed_under_prepared_statements_is_read_by_new_ones(world):
    """E22: stale prepared statements."""
    actor = world.actor()
    await actor.push_all(world.signed())
    await actor.version()
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE uploads ALTER COLUMN chunk_count TYPE bigint")
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert (await actor.version()).version == 1
                break
            except Unavailable:
                await asyncio.sleep(0.05)
    assert len((await actor.pull())[1]) == 3


HOSTILE = [
    "digits' OR '1'='1",
    "digits; DROP TABLE uploads --",
    "%s %(x)s {0}",
    "digits\x00",
    "\u202edigits",
    "d\u0456gits",
    "../digits",
    "x" * 65_536,
    '"\n{"injected": "line"}',
]


async def test_a_hostile_name_is_not_found_or_refused_and_does_nothing(world, caplog):
    """E24: in every rpc that takes a dataset's name."""
    actor = world.actor()
    await actor.push_all(world.signed())
    for name in HOSTILE:
        requests = {
            "GetVersion": messages.GetVersionRequest(dataset=name),
            "ShredVersion": messages.ShredVersionRequest(dataset=name, version=1),
            "SetLabel": messages.SetLabelRequest(dataset=name, label="golden", version=1),
            "GetLineage": messages.GetLineageRequest(dataset=name, version=1),
            "GetCroissant": messages.GetCroissantRequest(dataset=name),
            "SetRetention": messages.SetRetentionRequest(dataset=name, keep_versions=1),
        }
        async with nothing_changes(world):
            for method, request in requests.items():
                with pytest.raises((NotFound, InvalidRequest)), our_errors():
                    await getattr(actor.datasets, method)(request, metadata=actor.metadata)
            with pytest.raises((NotFound, InvalidRequest)):
                await actor.pull(name)
            with pytest.raises((NotFound, InvalidRequest)):
                await actor.push([manifest_message(world.signed(), name)])
        assert len((await actor.pull())[1]) == 3
        assert all("\n" not in record.getMessage() for record in caplog.records if record.name.startswith("services"))


async def test_labels_and_upload_ids_that_are_hostile_are_refused(world):
    """E24: what else is named by a caller."""
    actor = world.actor()
    await actor.push_all(world.signed())
    for label in ("golden'--", "\u202egolden", "g" * 65_536):
        with pytest.raises(InvalidRequest):
            await actor.pull(label=label)
    with pytest.raises(NotFound):
        await actor.pull(label="golden")


async def test_an_upload_that_collides_with_itself_ends_as_one(world):
    """E9: the same upload by four writers at once."""
    actors = [world.actor(f"w{number}") for number in range(4)]
    envelope = world.signed()

    async def push(actor) -> str:
        try:
            return str((await actor.push_all(envelope)).version)
        except Conflict:
            return "conflict"

    outcomes = await asyncio.gather(*map(push, actors))
    assert "1" in outcomes
    assert set(outcomes) <= {"1", "conflict"}
    assert await progress(world) == [("promoted", 40, 6)]
    assert len(await logged(world, "promotion")) == 1


@pytest.mark.parametrize("own", [True, False])
async def test_an_upload_that_became_the_version_since_it_was_looked_for_is_found_again(world, monkeypatch, own):
    """The twin is another upload of that version, which somebody else has made."""
    trainer, manifest = world.actor(), manifest_of()
    await trainer.push_all(world.signed(manifest))
    find, looked = VersionStore.find, []

    async def too_early(store, *names):
        looked.append(names)
        return await find(store, *names) if len(looked) > 1 else None

    monkeypatch.setattr(VersionStore, "find", too_early)
    if own:
        assert (await trainer.push([manifest_message(world.signed(manifest)), FINISH]))[-1].promoted.version == 1
    else:
        with pytest.raises(AlreadyExists):
            await trainer.push([manifest_message(world.signed(manifest_of()))])
    assert len(looked) == 2
    assert len(await logged(world, "promotion")) == 1
