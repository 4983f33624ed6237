"""What goes by itself: uploads nobody finished, and versions beyond their dataset's retention."""

from __future__ import annotations

from datetime import timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import AlreadyExists, CasemateError, Conflict, InvalidRequest, NotFound, StoredDataUnreadable
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.shred_receipt import verify_shred_receipt
from casemate.storage import pool
from services.datasets import row_ranges
from tests.services.datasets.pushing import OTHER_BYTES
from tests.services.datasets.reading import logged
from tests.services.datasets.test_labels import move, versions
from tests.services.datasets.world import FINISH, chunk_messages, manifest_message, manifest_of, our_errors


async def retain(actor, *, keep_versions: int = 0, keep_for: timedelta | None = None, dataset: str = "digits") -> int:
    request = messages.SetRetentionRequest(dataset=dataset, keep_versions=keep_versions)
    if keep_for is not None:
        request.keep_for.FromTimedelta(keep_for)
    with our_errors():
        return (await actor.datasets.SetRetention(request, metadata=actor.metadata)).log_index


async def states(world) -> list[tuple[int, str]]:
    async with world.sql() as sql:
        rows = await sql.fetch("SELECT version, state FROM uploads ORDER BY version, started_at")
    return [(row["version"], row["state"]) for row in rows]


async def keys(world) -> int:
    async with world.sql(data_keys=True) as sql:
        return await sql.fetchval("SELECT count(*) FROM data_keys WHERE purpose = 'dataset-rows'")


async def rows(world) -> int:
    async with world.sql() as sql:
        return await sql.fetchval("SELECT count(*) FROM sealed_rows")


@pytest.fixture
def patient_world(stopped_world):
    """Its clock may be put forward by itself: elsewhere the database's has to agree."""
    stopped_world.clocks_agree_within = timedelta(days=10_000)
    return stopped_world


async def test_an_upload_that_nobody_finished_expires_with_its_manifest_and_its_key_is_destroyed(patient_world):
    async with patient_world.serve() as world:
        actor = world.actor()
        abandoned = world.signed(manifest_of())
        await actor.push([manifest_message(abandoned), *chunk_messages()])
        equivocal = world.signed(manifest_of())
        with pytest.raises(Conflict):
            await actor.push([manifest_message(equivocal), *chunk_messages()[:1], *chunk_messages([OTHER_BYTES])])
        assert (await keys(world), await rows(world)) == (2, 8)
        assert await world.running.retention.look() == 0

        world.clock.shift = timedelta(hours=2)  # both manifests were for an hour
        assert await world.running.retention.look() == 2

        assert await states(world) == [(1, "discarded")] * 2
        assert (await keys(world), await rows(world)) == (0, 0)
        assert [body["why"] for body in await logged(world, "discard")] == ["expired"] * 2
        assert await world.running.retention.look() == 0
        world.clock.shift = timedelta()
        for envelope in (abandoned, equivocal):
            with pytest.raises(Conflict):
                await actor.push([manifest_message(envelope), FINISH])
        assert (await actor.push_all(world.signed())).version == 1, "the number is free"


async def test_an_upload_ends_after_its_longest_life_whatever_its_manifest_allows(patient_world):
    async with patient_world.serve() as world:
        actor = world.actor()
        late = manifest_of(expires_at=world.clock.now() + timedelta(days=300))
        await actor.push([manifest_message(world.signed(late)), *chunk_messages()[:1]])
        world.clock.shift = timedelta(days=6)
        assert await world.running.retention.look() == 0
        world.clock.shift = timedelta(days=8)
        assert await world.running.retention.look() == 1
        assert (await states(world), await keys(world)) == ([(1, "discarded")], 0)


async def test_a_version_that_was_never_promoted_can_be_shredded_and_its_neighbour_stays(world):
    actor = world.actor()
    envelopes = [world.signed(manifest_of()) for _ in range(2)]
    for envelope in envelopes:
        await actor.push([manifest_message(envelope), *chunk_messages()])

    answer = await actor.shred(version=1)

    log, key = parse_verification_key(answer.log_key)
    receipts = [
        verify_shred_receipt(text, log=log, public_key=key).receipt
        for text in (answer.receipt, *answer.further_receipts)
    ]
    assert [(receipt.version, receipt.key_deleted_at is not None) for receipt in receipts] == [(1, True)] * 2
    assert (await keys(world), await rows(world)) == (0, 0)
    assert await states(world) == [(1, "discarded")] * 2
    again = await actor.shred(version=1)
    assert {answer.receipt, *answer.further_receipts} == {again.receipt, *again.further_receipts}
    with pytest.raises(Conflict):
        await actor.push([manifest_message(envelopes[0]), FINISH])
    root = (await actor.push_all(world.signed())).root
    assert await keys(world) == 1
    await actor.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    assert len((await actor.pull(version=1))[1]) == 3, "the key of what was promoted later is its own"


async def test_an_attempt_given_up_after_another_was_promoted_takes_its_own_key_alone(patient_world):
    async with patient_world.serve() as world:
        actor = world.actor()
        await actor.push([manifest_message(world.signed(manifest_of())), *chunk_messages()])
        await actor.push_all(world.signed(manifest_of()))
        world.clock.shift = timedelta(hours=2)
        assert await world.running.retention.look() == 1
        world.clock.shift = timedelta()
        world.running.ring.drop()
        assert len((await actor.pull())[1]) == 3
    async with patient_world.serve() as world:  # the sweep of a start deletes again what was discarded, and no more
        await world.running.retention.look()
        assert len((await world.actor().pull())[1]) == 3


async def test_of_many_versions_the_newest_are_kept_and_those_that_a_label_names(world):
    actor, _ = await versions(world, 4)
    await move(actor, "golden", 1, 0)
    index = await retain(actor, keep_versions=2)
    assert await retain(actor, keep_versions=2) == index

    assert await world.running.retention.look() == 1

    assert await states(world) == [(1, "promoted"), (2, "shredded"), (3, "promoted"), (4, "promoted")]
    assert await keys(world) == 3
    receipt = await actor.shred(version=2)
    log, key = parse_verification_key(receipt.log_key)
    assert verify_shred_receipt(receipt.receipt, log=log, public_key=key).receipt.version == 2
    said = (await logged(world, "retention"))[0]
    assert (said["keep_versions"], said["keep_for_seconds"], said["client"]) == (2, None, "acme-trainer")
    assert len(await logged(world, "shred")) == 1


async def test_what_is_too_old_goes_labelled_or_not_the_newest_too(patient_world):
    async with patient_world.serve() as world:
        actor, _ = await versions(world, 2)
        await move(actor, "golden", 1, 0)
        await retain(actor, keep_for=timedelta(days=30))
        world.clock.shift = timedelta(days=29)
        assert await world.running.retention.look() == 0
        world.clock.shift = timedelta(days=31)
        assert await world.running.retention.look() == 2
        assert await states(world) == [(1, "shredded"), (2, "shredded")]
        assert await keys(world) == 0


async def test_a_clock_that_jumped_ahead_destroys_nothing(world):
    actor, _ = await versions(world, 2)
    await actor.push([manifest_message(world.signed(manifest_of(dataset="letters")), "letters")])
    await retain(actor, keep_for=timedelta(days=30))
    world.clock.shift = timedelta(days=3650)
    assert await world.running.retention.look() == 0
    assert await states(world) == [(1, "promoted"), (1, "receiving"), (2, "promoted")]
    assert await keys(world) == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE retentions SET keep_versions = 1",
        "UPDATE retentions SET keep_for_seconds = 1",
        "UPDATE retentions SET dataset = 'letters'",
        """INSERT INTO retentions SELECT tenant, 'letters', 1, NULL, log_index, mac FROM retentions""",
    ],
)
async def test_a_schedule_that_sql_made_or_changed_shreds_nothing(world, change):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=3)
    async with world.sql() as sql:
        assert not (await sql.execute(change)).endswith(" 0")
    assert await world.running.retention.look() == 0
    assert world.running.metrics.value("authority_alarms_total") >= 1
    assert await keys(world) == 3


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("SELECT", ["digits", "letters"]),
        ("UPDATE retentions SET keep_versions = 9 WHERE dataset = 'digits'", ["digits", "letters"]),
        ("UPDATE labels SET version = 3", ["letters"]),
        ("DELETE FROM labels", ["letters"]),
    ],
    ids=["nothing changed", "a schedule", "a label", "a label gone"],
)
async def test_each_schedule_stands_by_itself_whatever_became_of_those_before_it(world, change, gone):
    actor, _ = await versions(world, 3)
    await move(actor, "golden", 1, 0)
    root = (await actor.push_all(world.signed(manifest_of(dataset="letters")), dataset="letters")).root
    second = manifest_of(dataset="letters", version=2, previous_root=root)
    await actor.push_all(world.signed(second), dataset="letters")
    await retain(actor, keep_versions=1)
    await retain(actor, keep_versions=1, dataset="letters")
    async with world.sql() as sql:
        await sql.execute(change)

        assert await world.running.retention.look() == len(gone)

        found = await sql.fetch("SELECT dataset FROM uploads WHERE state = 'shredded' ORDER BY dataset")
    assert [row["dataset"] for row in found] == gone
    assert (world.running.metrics.value("authority_alarms_total") > 0) is (change != "SELECT")


async def test_setting_it_needs_the_grant_to_shred_and_a_possible_time(world):
    actor, _ = await versions(world, 1)
    for bad in (timedelta(0), timedelta(seconds=-1), timedelta(days=40_000)):
        with pytest.raises(InvalidRequest):
            await retain(actor, keep_for=bad)
    with pytest.raises(CasemateError):
        await retain(actor, keep_versions=2**64 - 1)
    world.grants = [grant for grant in world.grants if grant.verb != "shred"]
    world.tell()
    with pytest.raises(NotFound):
        await retain(actor, keep_versions=1)
    assert await logged(world, "retention") == []


async def test_a_version_number_of_which_nothing_is_there_is_not_found_without_reading_the_log(world):
    actor, _ = await versions(world, 1)
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE log_entries RENAME TO elsewhere")
        for version in (2, 9):
            with pytest.raises(NotFound):
                await actor.shred(version=version)
        await sql.execute("ALTER TABLE elsewhere RENAME TO log_entries")
    with pytest.raises(AlreadyExists):
        await actor.push_all(world.signed(manifest_of()))


async def test_an_upload_put_back_as_it_was_before_its_promotion_keeps_its_key(patient_world):
    """The superuser of the rows has no hand on the data keys, and must not have ours."""
    async with patient_world.serve() as world:
        actor = world.actor()
        envelope = world.signed()
        await actor.push([manifest_message(envelope), *chunk_messages()])
        async with world.sql() as sql:
            old = await sql.fetchrow("SELECT * FROM uploads")
            await actor.push([manifest_message(envelope), FINISH])
            back = ", ".join(f"{name} = ${place}" for place, name in enumerate(old.keys(), 1))
            new = await sql.fetchrow("SELECT * FROM uploads")
            await sql.execute(f"UPDATE uploads SET {back}", *old.values())  # noqa: S608  # names of the table

        world.clock.shift = timedelta(hours=2)
        assert await world.running.retention.look() == 0
        assert world.running.metrics.value("authority_alarms_total") == 1
        world.clock.shift = timedelta()
        with pytest.raises(StoredDataUnreadable):
            await actor.shred(version=1)
        assert (await keys(world), await rows(world)) == (1, 6)
        async with world.sql() as sql:
            await sql.execute(f"UPDATE uploads SET {back}", *new.values())  # noqa: S608  # as above
        assert len((await actor.pull())[1]) == 3


async def test_a_stricter_schedule_put_back_after_it_was_loosened_shreds_nothing(world):
    actor, _ = await versions(world, 3)
    await retain(actor, keep_versions=1)
    async with world.sql() as sql:
        old = await sql.fetchrow("SELECT * FROM retentions")
        await retain(actor, keep_versions=5)
        await sql.execute("DELETE FROM retentions")
        await sql.execute("INSERT INTO retentions VALUES ($1, $2, $3, $4, $5, $6)", *old.values())
    assert await world.running.retention.look() == 0
    assert world.running.metrics.value("authority_alarms_total") == 1
    assert await keys(world) == 3
    await retain(actor, keep_versions=2)
    assert await world.running.retention.look() == 1
    assert await keys(world) == 2


@pytest.mark.parametrize("put_back", [False, True], ids=["taken away", "put back"])
async def test_a_label_that_sql_took_away_or_put_back_gives_no_version_to_retention(world, put_back):
    actor, _ = await versions(world, 4)
    await move(actor, "golden", 2, 0)
    async with world.sql() as sql:
        row = await sql.fetchrow("SELECT * FROM labels")
        if put_back:
            await move(actor, "golden", 1, 2)
        true = await sql.fetchrow("SELECT * FROM labels")
        await retain(actor, keep_versions=2)
        await sql.execute("DELETE FROM labels")
        places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
        insert = f"INSERT INTO labels VALUES ({places})"  # noqa: S608  # places alone
        if put_back:
            await sql.execute(insert, *row.values())
        assert await world.running.retention.look() == 0
        assert world.running.metrics.value("authority_alarms_total") == 1
        assert (await keys(world), [state for _, state in await states(world)]) == (4, ["promoted"] * 4)
        await sql.execute("DELETE FROM labels")
        await sql.execute(insert, *true.values())
    assert await world.running.retention.look() == 1
    assert len((await actor.pull(version=1 if put_back else 2))[1]) == 3, "what the label names stays"


@pytest.mark.parametrize("put_back", [False, True])
async def test_a_label_that_a_restore_put_back_counts_again_once_it_is_set_where_it_is(world, put_back):
    actor, _ = await versions(world, 4)
    await move(actor, "golden", 2, 0)
    async with world.sql() as sql:
        row = await sql.fetchrow("SELECT * FROM labels")
        if put_back:
            await move(actor, "golden", 1, 2)
            old = row["version"], row["log_index"], row["mac"]
            await sql.execute("UPDATE labels SET version = $1, log_index = $2, mac = $3", *old)
    await retain(actor, keep_versions=2)
    said = len(await logged(world, "label"))

    assert await move(actor, "golden", 2, 2) == {"golden": 2}

    assert len(await logged(world, "label")) - said == put_back, "what the log has is not said again"
    assert await world.running.retention.look() == 1
    assert len((await actor.pull(version=2))[1]) == 3
    assert world.running.metrics.value("authority_alarms_total") == 0


@pytest.fixture
def slow_disk(monkeypatch):
    """What a statement may take is less than six rows do, once SQL has made them slow."""
    monkeypatch.setattr(pool, "COMMAND_TIMEOUT_SECONDS", 1.5)
    monkeypatch.setattr(row_ranges, "BATCHES_AT_ONCE", 1)


async def test_on_a_slow_disk_a_version_is_promoted_and_what_was_given_up_is_freed(slow_disk, patient_world):
    """Counted or deleted at once, the rows would take longer than a statement may, at every try."""
    chunks = [b"%d,row\n" % number for number in range(6)]
    async with patient_world.serve() as world:
        actor = world.actor()
        given_up, wanted = (world.signed(manifest_of(chunks)) for _ in range(2))
        for envelope in (given_up, wanted):
            await actor.push([manifest_message(envelope), *chunk_messages(chunks)])
        async with world.sql() as sql:
            await sql.execute("ALTER TABLE sealed_rows ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
            await sql.execute("CREATE POLICY slow ON sealed_rows USING (pg_sleep(0.3) IS NOT NULL)")

        await actor.push([manifest_message(wanted), FINISH])
        world.clock.shift = timedelta(hours=2)
        assert await world.running.retention.look() == 1

        assert await states(world) == [(1, "discarded"), (1, "promoted")]
        assert (await keys(world), await rows(world)) == (1, 6)
