"""Labels of versions: who moves them, from what to what, and what a reader gets by one."""

from __future__ import annotations

import asyncio

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import Conflict, InvalidRequest, NotFound, StoredDataUnreadable
from tests.services.datasets.reading import logged
from tests.services.datasets.world import manifest_of, our_errors


async def versions(world, count: int = 3):
    """A caller who pushed so many versions, and their roots."""
    actor, roots = world.actor(), []
    for number in range(1, count + 1):
        previous = roots[-1] if roots else None
        roots.append((await actor.push_all(world.signed(manifest_of(version=number, previous_root=previous)))).root)
    return actor, roots


async def move(actor, label: str, version: int, expected: int, dataset: str = "digits") -> dict[str, int]:
    with our_errors():
        request = messages.SetLabelRequest(dataset=dataset, label=label, version=version, expected_version=expected)
        return dict((await actor.datasets.SetLabel(request, metadata=actor.metadata)).labels)


async def listed(actor) -> dict[str, int]:
    with our_errors():
        request = messages.ListLabelsRequest(dataset="digits")
        return dict((await actor.datasets.ListLabels(request, metadata=actor.metadata)).labels)


async def by_label(actor, label: str, version: int = 0) -> int:
    description, _ = await actor.pull(version=version, label=label)
    return description.version


async def test_a_label_is_moved_from_what_it_names_and_read_by_and_every_move_is_in_the_log(world):
    actor, _ = await versions(world)
    assert await by_label(actor, "latest") == 3
    with pytest.raises(NotFound):
        await by_label(actor, "golden")

    assert await move(actor, "golden", 2, 0) == {"golden": 2}
    assert await by_label(actor, "golden") == 2
    assert await move(actor, "golden", 1, 2) == {"golden": 1}
    assert await move(actor, "latest", 1, 0) == {"golden": 1, "latest": 1}
    assert await by_label(actor, "latest") == 1
    assert (await actor.version()).version == 3, "without a label, the newest"
    assert list((await actor.version(version=1)).labels) == ["golden", "latest"]
    assert await move(actor, "latest", 0, 1) == {"golden": 1}
    assert await by_label(actor, "latest") == 3

    moves = [(m["label"], m["previous"], m["version"]) for m in await logged(world, "label")]
    assert moves == [("golden", 0, 2), ("golden", 2, 1), ("latest", 0, 1), ("latest", 1, 0)]
    assert (await logged(world, "label"))[0]["caller"] == "spiffe://casemate.internal/t/acme/trainer"


async def test_of_many_who_move_a_label_from_the_same_version_one_does(world):
    actor, _ = await versions(world)

    async def attempt(version: int) -> bool:
        try:
            await move(actor, "golden", version, 0)
        except Conflict:
            return False
        return True

    won = [version for version, done in enumerate(await asyncio.gather(*map(attempt, (1, 2, 3))), 1) if done]
    assert len(won) == 1
    assert await listed(actor) == {"golden": won[0]}
    assert await attempt(won[0]), "moving it where it is has no effect, and succeeds"
    assert len(await logged(world, "label")) == 1


async def test_what_is_no_label_is_refused(world):
    actor, _ = await versions(world, 1)
    for label in ("", "Golden", "1st", "a" * 33, "../x", "l\u0430test", "a\x00"):
        with pytest.raises(InvalidRequest):
            await move(actor, label, 1, 0)
    with pytest.raises(InvalidRequest):
        await by_label(actor, "latest", version=1)
    assert await move(actor, "golden-1", 1, 0) == {"golden-1": 1}


async def test_only_what_can_be_read_gets_a_label_and_moving_needs_its_grant(world):
    actor, _ = await versions(world, 2)
    for version in (3, 2**64 - 1):
        with pytest.raises(NotFound):
            await move(actor, "golden", version, 0)
    await actor.shred(version=2)
    with pytest.raises(NotFound):
        await move(actor, "golden", 2, 0)
    with pytest.raises(NotFound):
        await move(world.actor(tenant="globex"), "golden", 1, 0)
    world.grants = [grant for grant in world.grants if grant.verb != "label"]
    world.tell()
    with pytest.raises(NotFound):
        await move(actor, "golden", 1, 0)
    assert await listed(actor) == {}
    assert await logged(world, "label") == []


async def test_a_label_of_a_version_that_was_shredded_is_found_by_nobody(world):
    actor, _ = await versions(world, 2)
    await move(actor, "golden", 1, 0)
    await actor.shred(version=1)
    with pytest.raises(NotFound):
        await by_label(actor, "golden")
    assert await by_label(actor, "latest") == 2


@pytest.mark.parametrize(
    ("change", "undo", "label"),
    [
        ("SET version = 3", "SET version = 2", "golden"),
        ("SET label = 'latest'", "SET label = 'golden'", "latest"),
        ("SET log_index = 0", "SET log_index = 6", "golden"),
    ],
)
async def test_a_label_that_sql_changed_is_data_loss_and_alarms(world, change, undo, label):
    actor, _ = await versions(world)
    await move(actor, "golden", 2, 0)
    async with world.sql() as sql:
        await sql.execute(f"UPDATE labels {change}")
        with pytest.raises(StoredDataUnreadable):
            await by_label(actor, label)
        with pytest.raises(StoredDataUnreadable):
            await move(actor, "golden", 1, 2)
        with pytest.raises(StoredDataUnreadable):
            await listed(actor)
        assert world.running.metrics.value("authority_alarms_total") == 3
        await sql.execute(f"UPDATE labels {undo}")
    assert await by_label(actor, "golden") == 2
