"""How many uploads may be unfinished: of one supplier, of one tenant, and how a place becomes free."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from casemate.errors import Conflict, Exhausted
from casemate.signing.keys import SigningKey
from tests.services.datasets.pushing import OTHER_BYTES, nothing_changes
from tests.services.datasets.test_retention import keys
from tests.services.datasets.world import FINISH, chunk_messages, manifest_message, manifest_of

OF_SUPPLIER = "CASEMATE_DATASETS_UNFINISHED_UPLOADS_PER_SUPPLIER"
OF_TENANT = "CASEMATE_DATASETS_UNFINISHED_UPLOADS_PER_TENANT"


@pytest.fixture
def narrow_world(stopped_world):
    """Three uploads of a supplier, five of a tenant; its clock may be put forward by itself."""
    stopped_world.clocks_agree_within = timedelta(days=10_000)
    stopped_world.settings = replace(stopped_world.settings, uploads_per_supplier=3, uploads_per_tenant=5)
    return stopped_world


async def begin(world, actor, name: str, key: SigningKey | None = None, **changes: object) -> bytes:
    """Begins an upload and leaves it; gives its envelope."""
    envelope = world.signed(manifest_of(dataset=name, **changes), key)
    await actor.push([manifest_message(envelope, name)])
    return envelope


async def refused(world, actor, name: str, key: SigningKey | None = None) -> Exhausted:
    async with nothing_changes(world):
        with pytest.raises(Exhausted) as caught:
            await begin(world, actor, name, key)
    return caught.value


async def test_one_upload_too_many_is_refused_by_the_name_of_the_setting_and_leaves_no_key(narrow_world):
    async with narrow_world.serve() as world:
        actor = world.actor()
        first, *_ = [await begin(world, actor, f"set-{number}") for number in range(3)]

        error = await refused(world, actor, "another")

        assert [violation.field for violation in error.violations] == [OF_SUPPLIER]
        assert error.retry_after == timedelta(minutes=1)
        assert await keys(world) == 3
        await actor.push([manifest_message(first, "set-0"), *chunk_messages()[:1]])  # what has begun goes on
        await actor.push([manifest_message(first, "set-0"), *chunk_messages()[1:], FINISH])
        await begin(world, actor, "another")


async def test_the_suppliers_of_a_tenant_have_so_many_together_and_another_tenant_its_own(narrow_world):
    async with narrow_world.serve() as world:
        actor, second, foreign = world.actor(), SigningKey.generate(), SigningKey.generate()
        world.signers += [world.signer(second), world.signer(foreign, tenant="globex")]
        world.tell()
        for number in range(3):
            await begin(world, actor, f"set-{number}")
        for number in range(2):
            await begin(world, actor, f"other-{number}", second)

        error = await refused(world, actor, "another", second)

        assert [violation.field for violation in error.violations] == [OF_TENANT]
        await begin(world, world.actor(tenant="globex"), "set-0", foreign, tenant="globex")


@pytest.mark.parametrize("way", ["finished", "expired", "given up"])
async def test_a_place_is_free_again_once_an_upload_is_done_with(narrow_world, way):
    async with narrow_world.serve() as world:
        actor = world.actor()
        short = world.clock.now().replace(microsecond=0) + timedelta(minutes=30)
        envelope = await begin(world, actor, "set-0", expires_at=short)
        for number in (1, 2):
            await begin(world, actor, f"set-{number}")
        await refused(world, actor, "another")
        if way == "finished":
            await actor.push([manifest_message(envelope, "set-0"), *chunk_messages(), FINISH])
        elif way == "given up":
            await actor.shred(dataset="set-0")
        else:
            world.clock.shift = timedelta(minutes=40)
            assert await world.running.retention.look() == 1
            world.clock.shift = timedelta()
        await begin(world, actor, "another")
        await refused(world, actor, "one-more")


async def test_one_that_was_quarantined_keeps_its_place_until_it_is_given_up(narrow_world):
    async with narrow_world.serve() as world:
        actor = world.actor()
        first, *_ = [await begin(world, actor, f"set-{number}") for number in range(3)]
        with pytest.raises(Conflict):
            await actor.push([manifest_message(first, "set-0"), *chunk_messages()[:1], *chunk_messages([OTHER_BYTES])])
        await refused(world, actor, "another")
        await actor.shred(dataset="set-0")
        await begin(world, actor, "another")


async def test_of_many_that_begin_at_once_no_more_begin_than_may_and_the_others_leave_no_key(narrow_world):
    async with narrow_world.serve() as world:
        actor = world.actor()

        ends = await asyncio.gather(
            *(begin(world, actor, f"set-{number}") for number in range(12)), return_exceptions=True
        )

        assert sum(isinstance(end, bytes) for end in ends) == 3
        assert {type(end) for end in ends} == {bytes, Exhausted}
        assert await keys(world) == 3


async def test_two_streams_that_begin_one_upload_at_once_make_one_key(world):
    actor, envelope = world.actor(), world.signed()
    await asyncio.gather(*(actor.push([manifest_message(envelope)]) for _ in range(6)))
    assert await keys(world) == 1
