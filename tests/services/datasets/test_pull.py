"""Pulling: whole batches, proven; and who may not see what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import NotFound, PermissionDenied
from casemate.signing import merkle
from casemate.signing.keys import SigningKey
from casemate.signing.statements import verify_dataset_manifest
from tests.services.datasets.world import FOREVER, chunk_messages, manifest_message, manifest_of, our_errors


async def test_a_reader_recomputes_every_leaf_every_proof_and_the_signed_root(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())

    description, batches = await trainer.pull()

    verified = verify_dataset_manifest(
        description.manifest,
        audience="datasets.casemate.internal",
        tenant="acme",
        dataset="digits",
        resolve={world.supplier.public.key_id: world.signers[0]}.get,
        now=description.promoted_at.ToDatetime(UTC),
    )
    leaves, ordinal = [], 0
    for number, batch in enumerate(batches):
        assert (batch.number, batch.first_ordinal) == (number, ordinal)
        ordinal += len(batch.records)
        leaf = merkle.leaf_hash(b"".join(record + b"\n" for record in batch.records))
        merkle.verify_inclusion(leaf, number, len(batches), batch.inclusion_proof, verified.manifest.root)
        leaves.append(leaf)
    assert merkle.root(leaves) == verified.manifest.root == description.root
    assert ordinal == verified.manifest.rows == description.rows


async def test_a_version_with_many_batches_is_read_in_order(world):
    chunks = tuple(b"%d,n\n" % number for number in range(50))
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)

    _, batches = await trainer.pull(version=1)

    assert [bytes(batch.records[0]) for batch in batches] == [chunk[:-1] for chunk in chunks]


async def test_what_is_not_promoted_is_readable_by_no_rpc(world):
    trainer, inference = world.actor(), world.service("inference")
    manifest = manifest_of()
    await trainer.push([manifest_message(world.signed(manifest)), *chunk_messages()])

    for version in (0, 1):
        with pytest.raises(NotFound):
            await trainer.version(version=version)
        with pytest.raises(NotFound):
            await trainer.pull(version=version)
    request = messages.CheckRootsRequest(tenant="acme", roots=[manifest.root])
    assert list((await inference.datasets.CheckRoots(request)).refused) == [manifest.root]


async def test_another_tenants_dataset_is_as_if_it_were_not_there(world):
    await world.actor().push_all(world.signed())
    stranger = world.actor(tenant="globex")

    answers = []
    for dataset in ("digits", "absent"):
        with pytest.raises(NotFound) as caught:
            await stranger.version(dataset)
        answers.append((type(caught.value), caught.value.reason, caught.value.violations))
        with pytest.raises(NotFound):
            await stranger.pull(dataset)
    assert answers[0] == answers[1]
    assert (await world.actor().version()).version == 1


async def test_a_missing_grant_looks_like_an_absent_dataset_and_a_missing_scope_does_not(world):
    await world.actor().push_all(world.signed())
    with pytest.raises(PermissionDenied):
        await world.actor(scopes="datasets.write").pull()

    world.grants = [grant for grant in world.grants if grant.verb != "read"]
    world.tell()

    with pytest.raises(NotFound):
        await world.actor().pull()


@pytest.mark.parametrize("version", [2, 2**63, 2**64 - 1])
async def test_a_version_that_is_not_there_is_not_found(world, version):
    trainer = world.actor()
    await trainer.push_all(world.signed())

    with pytest.raises(NotFound):
        await trainer.version(version=version)


async def test_a_compromise_date_before_the_promotion_quarantines_and_one_after_it_does_not(world):
    trainer, inference = world.actor(), world.service("inference")
    root = (await trainer.push_all(world.signed())).root
    check = messages.CheckRootsRequest(tenant="acme", roots=[root])
    now = datetime.now(UTC)

    world.signers = [world.signer(world.supplier, compromised_since=now + timedelta(seconds=1))]
    world.tell()
    assert (await trainer.version()).root == root
    assert not (await inference.datasets.CheckRoots(check)).refused

    world.signers = [world.signer(world.supplier, compromised_since=now - timedelta(hours=1))]
    world.tell()
    with pytest.raises(NotFound):
        await trainer.version()
    with pytest.raises(NotFound):
        await trainer.pull()
    assert list((await inference.datasets.CheckRoots(check)).refused) == [root]


async def test_quarantined_roots_and_shredded_ones_are_told_from_unknown_ones(world):
    trainer, inference = world.actor(), world.service("inference")
    root = (await trainer.push_all(world.signed())).root
    await trainer.push_all(world.signed(manifest_of(dataset="shredded")), dataset="shredded")  # the same bytes
    kept = (b"7,seven\n",)
    gone = (await trainer.push_all(world.signed(manifest_of(kept, dataset="gone")), kept, dataset="gone")).root
    unknown = bytes(32)

    async def judged() -> tuple[list[bytes], list[bytes], list[bytes]]:
        request = messages.CheckRootsRequest(tenant="acme", roots=[root, gone, unknown])
        answer = await inference.datasets.CheckRoots(request)
        return list(answer.refused), list(answer.quarantined), list(answer.shredded)

    assert await judged() == ([unknown], [], [])
    await trainer.shred(dataset="gone")
    await trainer.shred(dataset="shredded")
    assert await judged() == ([gone, unknown], [], [gone])

    world.signers = [world.signer(world.supplier, compromised_since=datetime.now(UTC) + timedelta(hours=1))]
    world.tell()
    assert await judged() == ([gone, unknown], [], [gone])
    world.signers = [world.signer(world.supplier, compromised_since=datetime.now(UTC) - timedelta(hours=1))]
    world.tell()
    assert await judged() == ([root, gone, unknown], [root, gone], [])


async def test_a_root_that_another_trusted_signer_vouches_for_is_not_quarantined(world):
    trainer, inference = world.actor(), world.service("inference")
    other = SigningKey.generate()
    world.signers.append(world.signer(other))
    world.tell()
    root = (await trainer.push_all(world.signed())).root
    again = world.signed(manifest_of(dataset="again"), other)
    assert (await trainer.push_all(again, dataset="again")).root == root
    request = messages.CheckRootsRequest(tenant="acme", roots=[root])
    world.signers = [world.signer(world.supplier, compromised_since=FOREVER[0]), world.signer(other)]
    world.tell()

    answer = await inference.datasets.CheckRoots(request)
    assert (list(answer.refused), list(answer.quarantined)) == ([], [])

    await trainer.shred(dataset="again")
    answer = await inference.datasets.CheckRoots(request)
    assert (list(answer.quarantined), list(answer.shredded)) == ([], [root])

    world.signers = [world.signer(key, compromised_since=FOREVER[0]) for key in (world.supplier, other)]
    world.tell()
    answer = await inference.datasets.CheckRoots(request)
    assert (list(answer.quarantined), list(answer.shredded)) == ([root], [])


async def test_a_compromise_told_during_a_pull_ends_it(world):
    # Far more than the connection buffers, so that most of it is not yet sent when the news comes.
    chunks = tuple(b"%d,%s\n" % (number, b"x" * 900_000) for number in range(24))
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)
    assert len((await trainer.pull())[1]) == 24
    call = trainer.datasets.PullDataset(messages.PullDatasetRequest(dataset="digits"), metadata=trainer.metadata)
    pieces = aiter(call)
    await anext(pieces)

    world.signers = [world.signer(world.supplier, compromised_since=datetime(2021, 1, 1, tzinfo=UTC))]
    world.tell()

    with pytest.raises(NotFound), our_errors():
        [piece async for piece in pieces]


async def test_a_signer_that_the_feed_no_longer_knows_is_not_trusted(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    world.signers = []
    world.tell()

    with pytest.raises(NotFound):
        await trainer.pull()


async def test_roots_are_checked_within_one_tenant_and_by_inference_alone(world):
    trainer, inference = world.actor(), world.service("inference")
    root = (await trainer.push_all(world.signed())).root
    unknown = bytes(32)

    async def refused(tenant: str) -> list[bytes]:
        request = messages.CheckRootsRequest(tenant=tenant, roots=[root, unknown, b"short"])
        return list((await inference.datasets.CheckRoots(request)).refused)

    assert await refused("acme") == [unknown, b"short"]
    assert await refused("globex") == [root, unknown, b"short"]
    for other in (trainer, world.service("auth")):
        with pytest.raises(PermissionDenied), our_errors():
            await other.datasets.CheckRoots(messages.CheckRootsRequest(tenant="acme", roots=[root]))
