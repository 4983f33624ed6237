"""Retention against a thief with a supplier's key, a superuser who takes schedules away, and labels that come late."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.errors import NotFound, StoredDataUnreadable
from services.datasets.log_store import LogStore
from services.datasets.schedules import Schedule, Surplus, versions_beyond
from tests.services.datasets.logs import copied, superuser
from tests.services.datasets.reading import logged
from tests.services.datasets.test_labels import listed, move, versions
from tests.services.datasets.test_retention import keys, retain, states
from tests.services.datasets.world import manifest_of, our_errors

ALARMS, FAILURES = "authority_alarms_total", "integrity_failures_total"
WEEK = timedelta(days=7)


async def until(condition) -> None:
    """Waits for what is on its way."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def patient_world(stopped_world):
    """Its clock may be put forward by itself, and a version stays for a week after others took its place."""
    stopped_world.clocks_agree_within = timedelta(days=10_000)
    stopped_world.settings = replace(stopped_world.settings, surplus_kept_for=WEEK)
    return stopped_world


async def flooded(world):
    """One good version of which two are kept, and five more of whoever has the same key now; since when."""
    actor, roots = await versions(world, 1)
    await retain(actor, keep_versions=2)
    stolen = world.clock.now()
    for number in range(2, 7):
        root = (await actor.push_all(world.signed(manifest_of(version=number, previous_root=roots[-1])))).root
        roots.append(root)
    return actor, stolen


@pytest.mark.parametrize("revoked", [True, False])
async def test_versions_pushed_with_a_stolen_key_shred_no_good_one_if_the_key_is_revoked_within_a_week(
    patient_world, revoked
):
    async with patient_world.serve() as world:
        actor, stolen = await flooded(world)
        for days in (0, 6):
            world.clock.shift = timedelta(days=days)
            assert await world.running.retention.look() == 0
        if revoked:
            world.signers = [world.signer(world.supplier, compromised_since=stolen)]
            world.tell()
        world.clock.shift = timedelta(days=8)

        assert await world.running.retention.look() == (0 if revoked else 4)

        world.clock.shift = timedelta()
        if revoked:
            assert len((await actor.pull(version=1))[1]) == 3
        else:
            assert [state for _, state in await states(world)] == ["shredded"] * 4 + ["promoted"] * 2


async def test_what_is_pushed_out_stays_a_week_from_then_on_however_old_it_is(patient_world):
    async with patient_world.serve() as world:
        actor, roots = await versions(world, 2)
        await retain(actor, keep_versions=1)
        world.clock.shift = timedelta(days=30)  # the first was pushed out as the second came, a month ago
        assert await world.running.retention.look() == 1
        world.clock.shift = timedelta()
        await actor.push_all(world.signed(manifest_of(version=3, previous_root=roots[-1])))
        world.clock.shift = timedelta(days=6)
        assert await world.running.retention.look() == 0
        assert await states(world) == [(1, "shredded"), (2, "promoted"), (3, "promoted")]


async def test_a_version_goes_a_week_after_the_one_that_took_its_place_however_many_came_since(world):
    await versions(world, 4)
    stored = await world.running.stores.schedules.versions("acme", "digits")
    began = world.clock.now()
    dated = [replace(upload, promoted_at=began + timedelta(days=upload.version)) for upload in stored]

    def gone(days: int) -> list[int]:
        found = versions_beyond(
            Schedule(tenant="acme", dataset="digits", keep_versions=2, keep_for_seconds=None),
            dated,
            surplus=Surplus(counts=lambda _: True, kept_for=WEEK),
            labelled=frozenset(),
            now=began + timedelta(days=days),
        )
        return [upload.version for upload in found]

    assert (gone(9), gone(10), gone(11), gone(99)) == ([], [1], [2, 1], [2, 1])


@pytest.mark.parametrize("taken_away", [True, False])
async def test_a_schedule_that_sql_took_away_is_carried_out_all_the_same_and_alarms(world, taken_away):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=1)
    if taken_away:
        async with world.sql() as sql:
            assert await sql.execute("DELETE FROM retentions") == "DELETE 1"

    assert await world.running.retention.look() == 2

    assert await keys(world) == 1
    assert world.running.metrics.value(ALARMS) == taken_away


async def test_a_schedule_that_was_taken_away_alarms_at_the_start_and_until_it_is_set_again(stopped_world):
    async with stopped_world.serve() as world:
        actor, _ = await versions(world, 1)
        index = await retain(actor, keep_versions=2)
        async with world.sql() as sql:
            await sql.execute("DELETE FROM retentions")
    async with stopped_world.serve() as world:
        metrics = world.running.metrics
        await until(lambda: asyncio.sleep(0, metrics.value(ALARMS) == 1))
        await world.running.retention.look()
        assert metrics.value(ALARMS) == 2
        assert await retain(world.actor(), keep_versions=2) == index, "it is in the log already"
        await world.running.retention.look()
        assert metrics.value(ALARMS) == 2
        assert len(await logged(world, "retention")) == 1


async def test_a_schedule_set_again_is_compared_with_the_log_and_not_with_an_older_row(world):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=1)
    async with world.sql() as sql:
        old = await sql.fetchrow("SELECT * FROM retentions")
        await retain(actor, keep_versions=3)
        await sql.execute("DELETE FROM retentions")
        await sql.execute("INSERT INTO retentions VALUES ($1, $2, $3, $4, $5, $6)", *old.values())
    assert await world.running.retention.look() == 0
    await retain(actor, keep_versions=1)
    assert await world.running.retention.look() == 2, "said again, it holds again"


async def test_a_restore_makes_the_rows_of_schedules_those_of_the_log_and_nothing_alarms_afterwards(world):
    actor, _ = await versions(world, 1)
    await retain(actor, keep_versions=1)
    await retain(actor, keep_versions=1, dataset="letters")
    async with world.sql() as sql:
        old = await sql.fetchrow("SELECT * FROM retentions WHERE dataset = 'digits'")
        await retain(actor, keep_versions=3)
        new = await sql.fetch("SELECT * FROM retentions ORDER BY dataset")
        await sql.execute("DELETE FROM retentions WHERE dataset = 'digits'")
        await sql.execute("INSERT INTO retentions VALUES ($1, $2, $3, $4, $5, $6)", *old.values())
        for differed in (1, 0):
            assert await world.running.stores.schedules.write_again() == differed
        assert await sql.fetch("SELECT * FROM retentions ORDER BY dataset") == new
    assert await world.running.retention.look() == 0
    assert world.running.metrics.value(ALARMS) == 0


@asynccontextmanager
async def held_up(world, statement: str):
    """A superuser's transaction that holds what `statement` locks; gives what waits until one call waits for it."""
    async with world.sql() as sql, world.sql() as other:

        async def waited() -> None:
            query = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
            await until(lambda: other.fetchval(query, world.settings.database.name))

        async with sql.transaction():
            await sql.execute(statement)
            yield waited


@pytest.mark.parametrize("labelled", [True, False])
async def test_a_version_that_gets_a_label_after_it_was_found_due_is_not_shredded(world, labelled):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=2)
    async with held_up(world, "SELECT FROM uploads WHERE version = 1 FOR SHARE") as waited:
        looking = asyncio.create_task(world.running.retention.look())
        await waited()
        if labelled:
            await move(actor, "golden", 1, 0)
    assert await looking == (not labelled)

    expected = "promoted" if labelled else "shredded"
    assert await states(world) == [(1, expected), (2, "promoted"), (3, "promoted")]
    assert len(await logged(world, "shred")) == (not labelled)
    assert await world.running.retention.look() == 0


async def test_a_schedule_that_is_loosened_after_a_version_was_found_due_keeps_it(world):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=2)
    async with held_up(world, "SELECT FROM uploads WHERE version = 1 FOR SHARE") as waited:
        looking = asyncio.create_task(world.running.retention.look())
        await waited()
        await retain(actor, keep_versions=3)
    assert await looking == 0
    assert await keys(world) == 3


@pytest.mark.parametrize("shredded", [True, False])
async def test_a_label_does_not_come_to_name_what_was_shredded_while_it_was_being_set(world, shredded):
    actor, _ = await versions(world, 2)
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('acme/digits/labels', 0))"
    async with held_up(world, lock) as waited:
        moving = asyncio.create_task(move(actor, "golden", 1, 0))
        await waited()
        if shredded:
            await actor.shred(version=1)
    if shredded:
        with pytest.raises(NotFound):
            await moving
        assert await listed(actor) == {}
    else:
        assert await moving == {"golden": 1}


async def test_a_sweep_reads_what_is_new_in_the_log_alone_however_many_schedules_are_due(world, monkeypatch):
    actor, _ = await versions(world, 3)
    for name in ("letters", "words"):
        root = (await actor.push_all(world.signed(manifest_of(dataset=name)), dataset=name)).root
        await actor.push_all(world.signed(manifest_of(dataset=name, version=2, previous_root=root)), dataset=name)
    for name in ("digits", "letters", "words"):
        await retain(actor, keep_versions=1, dataset=name)
    given, scan = [], LogStore.scan

    async def counted(log, connection, **where):
        async for index, entry in scan(log, connection, **where):
            given.append(index)
            yield index, entry

    monkeypatch.setattr(LogStore, "scan", counted)
    size = (await world.running.stores.log.head()).size
    assert await world.running.retention.look() == 4
    assert len(given) == len(set(given)) <= size + 4, "its own four shreddings are among them, and nothing twice"
    given.clear()
    assert await world.running.retention.look() == 0
    assert len(given) <= 4


async def test_more_schedules_set_at_once_than_there_are_connections_are_all_set_and_alarm_nothing(world):
    actor, _ = await versions(world, 1)
    callers = 3 * world.running.stores.pool.get_max_size()

    done = await asyncio.gather(*(retain(actor, keep_versions=keep) for keep in range(1, callers + 1)))

    assert len(set(done)) == callers, "each is in the log once"
    (kept,) = await world.running.stores.schedules.current()
    assert (kept.log_index, kept.keep_versions) == max(zip(done, range(1, callers + 1), strict=True))
    assert (world.running.metrics.value(ALARMS), world.running.metrics.value(FAILURES)) == (0, 0)


async def test_what_was_read_meanwhile_does_not_make_an_older_snapshot_one_of_another_log(world, monkeypatch):
    actor, _ = await versions(world, 2)
    await move(actor, "golden", 1, 0)
    taken, goes_on, head_of = asyncio.Event(), asyncio.Event(), LogStore.head_of

    async def held(log, connection):
        head = await head_of(log, connection)
        if not taken.is_set():
            taken.set()
            await goes_on.wait()
        return head

    monkeypatch.setattr(LogStore, "head_of", held)
    reading = asyncio.create_task(world.running.stores.decisions.catch_up())
    await taken.wait()
    await move(actor, "golden", 2, 1)
    await move(actor, "golden", 2, 2)  # says nothing new, and so reads the log
    goes_on.set()
    await reading
    assert await world.running.stores.labels.proven("acme", "digits") == {"golden": 2}
    assert (world.running.metrics.value(ALARMS), world.running.metrics.value(FAILURES)) == (0, 0)


async def test_what_another_service_logs_as_a_schedule_or_a_label_is_none(world):
    actor, _ = await versions(world, 3)
    auth, retention = world.service("auth"), world.running.retention
    schedule = b'{"dataset":"digits","keep_for_seconds":null,"keep_versions":1,"tenant":"acme"}'
    label = b'{"dataset":"digits","label":"golden","tenant":"acme","version":1}'
    with our_errors():
        await auth.log.AppendEntry(log_service_pb2.AppendEntryRequest(kind="retention", body=schedule))
        await auth.log.AppendEntry(log_service_pb2.AppendEntryRequest(kind="label", body=label))
    assert await retention.look() == 0
    await retain(actor, keep_versions=1)
    assert await retention.look() == 2, "the label of nobody keeps nothing"
    assert world.running.metrics.value(ALARMS) == 0


@pytest.mark.parametrize("changed", ["promoted_at = 'infinity'", "state = 'lost'"])
async def test_a_row_of_values_that_no_row_of_ours_has_is_left_out_alarms_and_holds_up_no_other(world, changed):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=1)
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE uploads DROP CONSTRAINT uploads_state_check")
        before = await sql.fetchrow("SELECT promoted_at, state FROM uploads WHERE version = 1")
        await sql.execute(f"UPDATE uploads SET {changed} WHERE version = 1")  # noqa: S608  # above
        with pytest.raises(NotFound):
            await actor.shred(version=1)
        assert world.running.metrics.value(ALARMS) == 2, "as a version, and as an attempt"
        assert await world.running.retention.look() == 1
        await sql.execute("UPDATE uploads SET promoted_at = $1, state = $2 WHERE version = 1", *before.values())
    assert await world.running.retention.look() == 1
    assert [state for _, state in await states(world)] == ["shredded", "shredded", "promoted"]


async def reported(world, actor) -> int:
    request = dataset_service_pb2.ReportSignerRequest(key_id=world.supplier.public.key_id)
    request.since.FromJsonString("2020-01-01T00:00:00Z")
    with our_errors():
        return len([found async for found in actor.datasets.ReportSigner(request, metadata=actor.metadata)])


async def test_an_entry_without_json_meets_reports_and_retention_as_data_loss_and_nothing_is_shredded(stopped_world):
    async with stopped_world.serve() as world:
        actor, _ = await versions(world, 3)
        await move(actor, "golden", 1, 0)
        await retain(actor, keep_versions=1)
        await copied(world, back=False)
        async with superuser(world) as sql:
            label = """'"kind":"label"'::bytea"""
            await sql.execute(f"UPDATE log_entries SET entry = {label} WHERE position({label} in entry) > 0")  # noqa: S608  # above
    async with stopped_world.serve() as world:
        actor, metrics = world.actor(), world.running.metrics
        await until(lambda: asyncio.sleep(0, metrics.value(FAILURES) == 1))  # the schedules, as it starts
        with pytest.raises(StoredDataUnreadable):
            await world.running.retention.look()
        with pytest.raises(StoredDataUnreadable):
            await reported(world, actor)
        assert metrics.value(FAILURES) == 3
        assert await keys(world) == 3
        await copied(world, back=True)
        assert await reported(world, actor) == 3
        assert await world.running.retention.look() == 1
        assert await keys(world) == 2
