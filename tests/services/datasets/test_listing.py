"""The list of datasets: a page holds what its caller may read, and tells of nothing else."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import InvalidRequest
from casemate.gate.core.records import Effect, Grant
from casemate.signing.keys import SigningKey
from services.datasets import listing
from tests.services.datasets.reading import datasets_of
from tests.services.datasets.test_labels import versions
from tests.services.datasets.world import manifest_message, manifest_of, our_errors

NAMES = ("apples", "digits", "letters", "maps", "words")


async def page(actor, *, size: int = 0, token: str = "") -> messages.ListDatasetsResponse:
    with our_errors():
        request = messages.ListDatasetsRequest(page_size=size, page_token=token)
        return await actor.datasets.ListDatasets(request, metadata=actor.metadata)


async def names(actor, *, size: int = 0) -> list[list[str]]:
    """The names on each page."""
    found, token = [], ""
    while True:
        answer = await page(actor, size=size, token=token)
        found.append([one.dataset for one in answer.datasets])
        token = answer.next_page_token
        if not token:
            return found


async def furnished(world):
    """Five datasets of acme, an upload that is no version, and one dataset of globex."""
    actor, foreign = world.actor(), SigningKey.generate()
    world.signers.append(world.signer(foreign, tenant="globex"))
    world.tell()
    for name in NAMES:
        await actor.push_all(world.signed(manifest_of(dataset=name)), dataset=name)
    await actor.push([manifest_message(world.signed(manifest_of(dataset="begun")), "begun")])
    other = world.actor(tenant="globex")
    await other.push_all(world.signed(manifest_of(dataset="foreign", tenant="globex"), foreign), dataset="foreign")
    return actor, other


def granted(world, *resources: str, effect: Effect = Effect.ALLOW) -> None:
    """What callers of acme may read, and nothing else."""
    world.grants = [grant for grant in world.grants if grant.verb != "read"] + [
        Grant(id=f"{number}", tenant="acme", caller="t/acme/*", verb="read", resource=resource, effect=effect)
        for number, resource in enumerate(resources)
    ]
    world.tell()


async def test_a_list_goes_through_all_its_pages_once_and_is_of_the_callers_tenant_alone(world, monkeypatch):
    actor, other = await furnished(world)
    assert await names(actor) == [list(NAMES)]
    assert await names(other) == [["foreign"]]
    assert await names(world.actor(tenant="initech")) == [[]]
    for at_once in (128, 1, 2, 5):
        monkeypatch.setattr(listing, "_READ_AT_ONCE", at_once)
        assert await names(actor, size=1) == [[name] for name in NAMES]
        assert await names(actor, size=2) == [["apples", "digits"], ["letters", "maps"], ["words"]]
        assert await names(actor, size=5) == [list(NAMES)]
    with datasets_of(world, actor) as client:
        found = await asyncio.to_thread(lambda: [one.dataset for one in client.listed(page_size=2)])
    assert found == list(NAMES)


async def test_what_is_not_granted_is_as_absent_and_no_page_tells_that_there_is_more(world):
    actor, _ = await furnished(world)
    nowhere = world.actor(tenant="initech")
    granted(world)
    for size in (0, 1):
        assert await page(actor, size=size) == await page(nowhere, size=size)
    granted(world, "dataset/digits", "dataset/maps/1", "dataset/words/7")
    assert await names(actor, size=1) == [["digits"], ["maps"]], "the last page is the last that is granted"
    granted(world, "dataset/*")
    world.grants.append(
        Grant(id="no", tenant="acme", caller="t/acme/*", verb="read", resource="dataset/maps/1", effect=Effect.DENY)
    )
    world.tell()
    assert await names(actor) == [["apples", "digits", "letters", "words"]]


async def test_a_dataset_is_shown_by_its_newest_version_that_counts(world):
    actor, roots = await versions(world, 2)
    stolen = SigningKey.generate()
    world.signers.append(world.signer(stolen))
    world.tell()
    third = world.signed(manifest_of(version=3, previous_root=roots[-1]), stolen)
    await actor.push_all(third)
    newest = (await page(actor)).datasets[0]
    assert (newest.version, newest.rows, newest.shredded) == (3, 6, False)
    assert newest.promoted_at == (await actor.version()).promoted_at

    world.signers[-1] = world.signer(stolen, compromised_since=world.clock.now() - timedelta(hours=1))
    world.tell()
    shown = (await page(actor)).datasets[0]
    assert (shown.version, shown.root) == (2, roots[1])
    world.grants.append(
        Grant(id="2", tenant="acme", caller="t/acme/*", verb="read", resource="dataset/digits/2", effect=Effect.DENY)
    )
    world.tell()
    assert (await page(actor)).datasets[0].version == 1, "an older one too has to be granted"
    world.grants.pop()
    world.tell()
    await actor.shred(version=2)
    assert (await page(actor)).datasets[0].shredded
    world.signers.clear()
    world.tell()
    assert await names(actor) == [[]], "nothing of it counts"


async def test_a_row_that_sql_changed_is_left_out_and_alarms_and_the_others_are_listed(world):
    actor, _ = await furnished(world)
    async with world.sql() as sql:
        await sql.execute("UPDATE uploads SET row_count = 7 WHERE dataset = 'letters'")
        assert await names(actor, size=1) == [[name] for name in NAMES if name != "letters"]
        assert world.running.metrics.value("authority_alarms_total") > 0
        await sql.execute("UPDATE uploads SET row_count = 6 WHERE dataset = 'letters'")
    assert await names(actor) == [list(NAMES)]


async def test_a_token_that_no_page_ended_with_is_refused(world):
    actor, _ = await versions(world, 1)
    for token in ("?", "####", "AAAA", "ZGlnaXRz\n", "Li4vLi4", "YQ" * 200):
        with pytest.raises(InvalidRequest):
            await page(actor, token=token)
    assert [one.dataset for one in (await page(actor, token=listing._encode("apples"))).datasets] == ["digits"]
