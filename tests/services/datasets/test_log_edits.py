"""Entries of the log that SQL changed, wherever the service meets them: data loss, an alarm, and nothing given out."""

from __future__ import annotations

from casemate.datasets.v1 import log_service_pb2
from casemate.errors import StoredDataUnreadable
from services.datasets.database import transaction
from services.datasets.log import LogHead
from tests.services.datasets.logs import append, copied, superuser
from tests.services.datasets.world import our_errors

FAILURES = "integrity_failures_total"
EDITS = {
    "no JSON": "UPDATE log_entries SET entry = 'x' WHERE index = 2",
    "other JSON": """UPDATE log_entries SET entry = '{"body":{"tenant":"acme"},"kind":"x"}' WHERE index = 2""",
    "its hash too": "UPDATE log_entries SET entry = '{}', leaf_hash = sha256('\\x007b7d') WHERE index = 2",
    "its hash alone": "UPDATE log_entries SET leaf_hash = sha256('x') WHERE index = 2",
    "emptied": "ALTER TABLE log_entries ALTER entry DROP NOT NULL; UPDATE log_entries SET entry = NULL WHERE index = 2",
    "its hash emptied": "ALTER TABLE log_entries ALTER leaf_hash DROP NOT NULL; "
    "UPDATE log_entries SET leaf_hash = NULL WHERE index = 2",
    "one gone": "DELETE FROM log_entries WHERE index = 2",
    "the last gone": "DELETE FROM log_entries WHERE index = 4",
    "one more": "INSERT INTO log_entries SELECT 5, entry, leaf_hash FROM log_entries WHERE index = 2",
    "two swapped": "UPDATE log_entries a SET entry = b.entry, leaf_hash = b.leaf_hash FROM log_entries b "
    "WHERE a.index IN (2, 3) AND b.index = 5 - a.index",
}


async def entries(actor, first: int = 0) -> list[bytes]:
    with our_errors():
        request = log_service_pb2.ListEntriesRequest(first=first)
        return list((await actor.log.ListEntries(request, metadata=actor.metadata)).entries)


async def test_an_edited_log_is_listed_to_nobody_alarms_and_put_back_is_listed_again(world):
    auditor, auth, metrics = world.actor(), world.service("auth"), world.running.metrics
    for number in range(5):
        await append(auth, number)
    before = [await entries(auditor, first) for first in range(5)]
    await copied(world, back=False)
    for name, edit in EDITS.items():
        sounded = metrics.value(FAILURES)
        async with superuser(world) as sql:
            assert not (await sql.execute(edit)).endswith(" 0"), name

        refused = 0
        for first in range(5):
            try:
                assert await entries(auditor, first) == before[first], name
            except StoredDataUnreadable:
                refused += 1

        # Behind the edit there may be entries that are as they were logged, and are proven still.
        assert refused >= 3, name
        assert metrics.value(FAILURES) == sounded + refused, name
        await copied(world, back=True)
        assert [await entries(auditor, first) for first in range(5)] == before, name


async def scanned(world, *, after: LogHead = LogHead()) -> list[int]:  # noqa: B008  # frozen
    """The indices that a scan gives before it ends or fails."""
    found, log = [], world.running.stores.log
    async with transaction(world.running.stores.pool, isolation="repeatable_read") as connection:
        try:
            async for index, _ in log.scan(connection, after=after):
                found.append(index)
        except StoredDataUnreadable:
            found.append(-1)
    return found


async def test_a_scan_gives_out_what_is_proven_alone_from_wherever_it_begins(world):
    log, pool, size = world.running.stores.log, world.running.stores.pool, 600
    heads = [await log.head()]
    async with transaction(pool) as connection:
        for number in range(size):
            await log.append(connection, "test", {"number": number}, by="auth")
            heads.append(await log.head_of(connection))
    for first in (0, 1, 255, 256, 257, 511, 512, 513, 599, 600):
        assert await scanned(world, after=heads[first]) == list(range(first, size))

    await copied(world, back=False)
    edits = {
        "UPDATE log_entries SET entry = 'x' WHERE index = 300": list(range(256)),
        "DELETE FROM log_entries WHERE index = 300": list(range(256)),
        "UPDATE log_entries SET entry = 'x' WHERE index = 590": list(range(512)),
        "DELETE FROM log_entries WHERE index >= 512": list(range(512)),
        "UPDATE log_entries SET index = index + 1000 WHERE index >= 590": list(range(512)),
        "UPDATE log_nodes SET hash = sha256('x') WHERE level = 8 AND index = 1": [],
        "DELETE FROM log_nodes WHERE level = 8 AND index = 1": [],
    }
    for edit, given in edits.items():
        async with superuser(world) as sql:
            assert not (await sql.execute(edit)).endswith(" 0")
        assert await scanned(world) == [*given, -1], edit
        assert (await scanned(world, after=heads[512]))[-1] == (-1 if "590" in edit or "512" in edit else 599), edit
        await copied(world, back=True)
    assert await scanned(world, after=heads[300].appended(bytes(32))) == [-1], "this log never had that head"
