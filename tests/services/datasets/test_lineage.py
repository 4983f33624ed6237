"""Lineage: which models were trained on what, and what a compromised key reached."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1 import log_service_pb2
from casemate.errors import InvalidRequest, NotFound, PermissionDenied, StoredDataUnreadable
from casemate.gate.core.records import Release, ReleasedVersion
from tests.services.datasets.test_labels import versions
from tests.services.datasets.world import our_errors

MANIFEST = "ab" * 32


async def release(world, roots, *, model: str = "digits", number: int = 1, by: str = "inference", **changes) -> int:
    body = {
        "dataset_roots": [root.hex() for root in roots],
        "manifest_sha256": MANIFEST,
        "model": model,
        "number": number,
        "signer_key_id": "cd" * 32,
        "tenant": "acme",
    } | changes
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    with our_errors():
        request = log_service_pb2.AppendEntryRequest(kind="release", body=text)
        return (await world.service(by).log.AppendEntry(request)).index


async def lineage(actor, version: int = 0, **named) -> messages.GetLineageResponse:
    with our_errors():
        request = messages.GetLineageRequest(dataset="digits", version=version, **named)
        return await actor.datasets.GetLineage(request, metadata=actor.metadata)


async def report(actor, key_id: str, since: datetime | None = None) -> list[messages.ReportSignerResponse]:
    request = messages.ReportSignerRequest(key_id=key_id)
    if since is not None:
        request.since.FromDatetime(since)
    with our_errors():
        return [found async for found in actor.datasets.ReportSigner(request, metadata=actor.metadata)]


def names(models) -> list[tuple[str, int]]:
    return [(model.model, model.number) for model in models]


async def test_a_version_names_the_models_that_were_trained_on_it_and_its_predecessor(world):
    actor, roots = await versions(world, 2)
    roots[1:] = [roots[1]]
    index = await release(world, roots)
    await release(world, roots[:1], number=2)
    await release(world, roots[:1], number=2)  # published again after an answer was lost
    await release(world, roots, tenant="globex", model="theirs")

    world.releases = [
        Release(
            tenant="acme",
            model="digits",
            versions=(
                ReleasedVersion(
                    number=1, manifest_sha256=bytes.fromhex(MANIFEST), signer_key_id="k", recorded_at=datetime.now(UTC)
                ),
            ),
            labels={"stable": 1},
        )
    ]
    world.tell()
    first, second = await lineage(actor, 1), await lineage(actor, label="latest")
    assert (first.previous_root, second.previous_root) == (b"", roots[0])
    # Both versions hold the same bytes, and so have the same root: the models are those of the root.
    assert names(first.models) == names(second.models) == [("digits", 1), ("digits", 2)]
    assert [(m.released, list(m.labels)) for m in first.models] == [(True, ["stable"]), (False, [])]
    assert first.models[0].log_index == index
    stranger = world.actor(tenant="globex")
    with pytest.raises(NotFound):
        await lineage(stranger, 1)


async def test_a_release_that_is_sent_again_is_in_the_log_once_and_another_one_beside_it(world):
    _, roots = await versions(world, 1)
    first, none = await release(world, roots), await release(world, [], model="theirs")
    again = await asyncio.gather(*(release(world, roots) for _ in range(4)), release(world, [], model="theirs"))
    assert again == [first] * 4 + [none]
    assert await release(world, roots, number=2) == none + 1  # nothing was appended between
    assert await release(world, roots, manifest_sha256="ef" * 32) == none + 2


async def test_a_release_whose_row_sql_changed_is_no_reason_to_leave_it_out_of_the_log(world):
    _, roots = await versions(world, 1)
    await release(world, roots)
    async with world.sql() as sql:
        await sql.execute("UPDATE trained_models SET manifest_sha256 = $1", bytes.fromhex("ef" * 32))
    with pytest.raises(StoredDataUnreadable):
        await release(world, roots, manifest_sha256="ef" * 32)


BAD_ENTRIES = (
    {"dataset_roots": "ab" * 32},
    {"dataset_roots": ["AB" * 32]},
    {"dataset_roots": [1]},
    {"number": 0},
    {"number": True},
    {"model": ""},
    {"tenant": "a\x00"},
    {"manifest_sha256": "ab"},
)


async def test_a_release_entry_that_does_not_say_what_it_must_is_refused_and_not_logged(world):
    _, roots = await versions(world, 1)
    for bad in BAD_ENTRIES:
        with pytest.raises(InvalidRequest):
            await release(world, roots, **bad)
    assert await release(world, roots) == 2


async def test_auth_makes_no_lineage(world):
    actor, roots = await versions(world, 1)
    await release(world, roots, by="auth")
    assert names((await lineage(actor)).models) == []


async def test_a_compromise_date_quarantines_and_the_report_names_what_was_trained_on_it(world):
    actor, roots = await versions(world, 2)
    await release(world, roots[:1], model="exposed")
    key_id = world.supplier.public.key_id
    with pytest.raises(InvalidRequest):  # no compromise is declared, and no date is asked about
        await report(actor, key_id)
    asked = await report(actor, key_id, datetime.now(UTC) - timedelta(hours=1))
    assert [(found.version, found.quarantined) for found in asked] == [(1, False), (2, False)]
    assert await report(actor, key_id, datetime.now(UTC) + timedelta(hours=1)) == []

    since = datetime.now(UTC) - timedelta(hours=1)
    world.signers = [world.signer(world.supplier, compromised_since=since)]
    world.tell()

    found = await report(actor, key_id)
    assert [(v.dataset, v.version, v.root, v.quarantined) for v in found] == [
        ("digits", 1, roots[0], True),
        ("digits", 2, roots[1], True),
    ]
    assert names(found[0].models) == [("exposed", 1)]
    with pytest.raises(NotFound):
        await actor.pull(version=1)
    quarantined = await lineage(actor, 1)
    assert quarantined.quarantined
    assert names(quarantined.models) == [("exposed", 1)]
    for nobody in ("", "00" * 32):
        with pytest.raises(NotFound):
            await report(actor, nobody, since)
    with pytest.raises(PermissionDenied):
        await report(world.actor(scopes="datasets.read"), key_id)


async def test_a_key_is_reported_to_its_own_tenant_and_to_the_house(world):
    actor, roots = await versions(world, 1)
    since = datetime.now(UTC) - timedelta(hours=1)
    house = world.actor("auditor", tenant="casemate", scopes="log.read")
    for reader in (actor, house):
        assert [found.root for found in await report(reader, world.supplier.public.key_id, since)] == roots
    with pytest.raises(NotFound):
        await report(world.actor(tenant="globex"), world.supplier.public.key_id, since)


async def test_a_version_whose_row_sql_deleted_is_in_the_report(world):
    actor, roots = await versions(world, 2)
    await release(world, roots[:1], model="exposed")
    world.signers = [world.signer(world.supplier, compromised_since=datetime.now(UTC) - timedelta(hours=1))]
    world.tell()
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE manifests DROP CONSTRAINT manifests_upload_fkey")
        await sql.execute("ALTER TABLE batches DROP CONSTRAINT batches_upload_fkey")
        await sql.execute("DELETE FROM uploads WHERE version = 1")

    found = await report(actor, world.supplier.public.key_id)
    assert (found[0].version, found[0].quarantined, names(found[0].models)) == (1, True, [("exposed", 1)])


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM trained_models WHERE number = 0",
        "UPDATE trained_models SET model = 'other' WHERE number = 0",
        "UPDATE trained_models SET root = sha256(root) WHERE number = 1",
        "UPDATE trained_models SET number = 9 WHERE number = 1",
        """INSERT INTO trained_models SELECT 2, tenant, root, 'evil', 1, manifest_sha256, signer_key_id, 0, mac
           FROM trained_models WHERE number = 0""",
        "UPDATE trained_models_head SET size = 1",
    ],
)
async def test_a_lineage_that_sql_changed_is_data_loss_until_it_is_built_again_from_the_log(stopped_world, change):
    async with stopped_world.serve() as world:
        actor, roots = await versions(world, 1)
        await release(world, roots, model="first")
        await release(world, roots, model="second")
        whole = names((await lineage(actor)).models)
        async with world.sql() as sql:
            assert not (await sql.execute(change)).endswith(" 0")
    async with stopped_world.serve() as world:
        with pytest.raises(StoredDataUnreadable):
            await lineage(world.actor())
        assert world.running.metrics.value("authority_alarms_total") == 1
        async with world.sql() as sql:
            await sql.execute("DELETE FROM trained_models_head")
    async with stopped_world.serve() as world:
        assert names((await lineage(world.actor())).models) == whole == [("first", 1), ("second", 1)]
