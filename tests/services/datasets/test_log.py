"""The transparency log over the wire."""

from __future__ import annotations

import json

import asyncpg
import pytest

from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import InvalidRequest, NotFound, OutOfRange, PermissionDenied
from casemate.signing import merkle
from casemate.signing.checkpoint import verify_checkpoint
from tests.services.datasets.world import RECORDS, manifest_message, manifest_of, our_errors

ORIGIN = "datasets.casemate.internal/log"


async def _append(actor, kind: str = "release", body: bytes = b'{"model":"digits","tenant":"acme"}') -> int:
    with our_errors():
        return (await actor.log.AppendEntry(messages.AppendEntryRequest(kind=kind, body=body))).index


async def _entry(actor, index: int, tree_size: int = 0) -> messages.GetEntryResponse:
    with our_errors():
        request = messages.GetEntryRequest(index=index, tree_size=tree_size)
        return await actor.log.GetEntry(request, metadata=actor.metadata)


async def _checkpoint(actor, world):
    with our_errors():
        answer = await actor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=actor.metadata)
    return verify_checkpoint(answer.checkpoint, ORIGIN, world.running.log_key)


async def test_every_entry_is_proven_under_the_signed_checkpoint(world):
    auditor, inference = world.actor(), world.service("inference")
    assert (await _checkpoint(auditor, world)).size == 0
    promoted = await auditor.push_all(world.signed())
    indices = [0, promoted.log_index, *[await _append(inference) for _ in range(3)]]

    checkpoint = await _checkpoint(auditor, world)

    assert indices == [0, 1, 2, 3, 4]
    assert checkpoint.size == 5
    for index in indices:
        found = await _entry(auditor, index)
        leaf = merkle.leaf_hash(found.entry)
        assert found.tree_size == 5
        merkle.verify_inclusion(leaf, index, found.tree_size, found.inclusion_proof, checkpoint.root)


async def test_a_proof_can_be_had_for_an_older_checkpoint(world):
    auditor, inference = world.actor(), world.service("inference")
    for _ in range(3):
        await _append(inference)
    older = await _checkpoint(auditor, world)
    for _ in range(2):
        await _append(inference)

    found = await _entry(auditor, 1, tree_size=3)

    merkle.verify_inclusion(merkle.leaf_hash(found.entry), 1, 3, found.inclusion_proof, older.root)


async def test_a_promotion_is_in_the_log_by_digest_and_name_and_no_row_is(world):
    auditor = world.actor()
    promoted = await auditor.push_all(world.signed())

    entry = json.loads((await _entry(auditor, promoted.log_index)).entry)

    assert (entry["kind"], entry["by"]) == ("promotion", "datasets")
    assert entry["body"]["root"] == promoted.root.hex()
    assert entry["body"]["signer"] == world.supplier.public.key_id
    assert set(entry["body"]) == {"dataset", "manifest_sha256", "root", "rows", "signer", "tenant", "version"}


async def test_the_manifest_is_in_the_log_before_the_first_row_and_every_export_before_the_last(world):
    auditor = world.actor()
    await auditor.push([manifest_message(world.signed())])
    assert json.loads((await _entry(auditor, 0)).entry)["kind"] == "manifest"
    promoted = await auditor.push_all(world.signed(manifest_of()))
    await auditor.pull()

    entries = [json.loads((await _entry(auditor, index)).entry) for index in range(4)]

    assert [entry["kind"] for entry in entries] == ["manifest", "manifest", "promotion", "export"]
    assert entries[1]["body"] == entries[2]["body"]
    export = entries[3]["body"]
    assert (export["version"], export["root"]) == (1, promoted.root.hex())
    assert (export["caller"], export["client"]) == ("spiffe://casemate.internal/t/acme/trainer", "acme-trainer")
    assert not any(record.decode() in json.dumps(entries) for record in RECORDS)


async def test_an_entry_carries_the_name_of_the_service_that_made_it(world):
    auditor = world.actor()
    for index, name in enumerate(("auth", "inference")):
        assert await _append(world.service(name)) == index
        assert json.loads((await _entry(auditor, index)).entry)["by"] == name


async def test_no_client_and_no_other_service_appends(world):
    for actor in (world.actor(), world.service("datasets")):
        with pytest.raises(PermissionDenied):
            await _append(actor)
    assert (await _checkpoint(world.actor(), world)).size == 0


async def test_the_log_is_read_with_its_scope_alone(world):
    await _append(world.service("auth"))

    with pytest.raises(PermissionDenied):
        await _entry(world.actor(scopes="datasets.read"), 0)
    assert (await _entry(world.actor(scopes="log.read"), 0)).tree_size == 1


async def test_a_body_that_is_not_canonical_is_refused(world):
    with pytest.raises(InvalidRequest):
        await _append(world.service("auth"), body=b'{"b": 1}')
    assert await _append(world.service("auth"), body=b'{"b":1}') == 0


@pytest.mark.parametrize(("index", "tree_size"), [(1, 0), (0, 2), (2**63, 0), (0, 2**64 - 1), (1, 1)])
async def test_what_the_log_does_not_hold_is_out_of_range(world, index, tree_size):
    await _append(world.service("auth"))
    auditor = world.actor()

    with pytest.raises(OutOfRange):
        await _entry(auditor, index, tree_size)
    assert (await _entry(auditor, 0, 1)).tree_size == 1


async def test_entries_are_not_changed_by_mistake(world):
    await _append(world.service("auth"))

    async with world.sql() as sql:
        for statement in ("UPDATE log_entries SET entry = ''", "DELETE FROM log_entries", "TRUNCATE log_entries"):
            with pytest.raises(asyncpg.RaiseError):
                await sql.execute(statement)


async def test_the_log_goes_on_under_the_same_key_after_a_restart(stopped_world):
    async with stopped_world.serve() as world:
        await _append(world.service("auth"))
        key = world.running.log_key
    async with stopped_world.serve() as world:
        assert await _append(world.service("auth")) == 1
        assert world.running.log_key == key
        assert (await _checkpoint(world.actor(), world)).size == 2


async def test_an_entry_is_for_the_tenant_that_it_names_and_for_the_house(world):
    """Checkpoint, hashes and proofs are everybody's; the rest of another tenant's entry is as if it were not there."""
    auth, acme, globex = world.service("auth"), world.actor(), world.actor(tenant="globex")
    house = world.actor("auditor", tenant="casemate", scopes="log.read")
    bodies = (b'{"dataset":"secret-plans","tenant":"acme"}', b'{"tenant":"globex"}', b'{"kid":"of-the-house"}')
    for body in bodies:
        await _append(auth, body=body)

    async def seen(actor) -> list[bytes]:
        answer = await actor.log.ListEntries(messages.ListEntriesRequest(), metadata=actor.metadata)
        leaves = list(answer.leaf_hashes)
        assert merkle.root(leaves) == (await _checkpoint(actor, world)).root, "whoever sees nothing proves all the same"
        for entry, leaf in zip(answer.entries, leaves, strict=True):
            assert entry == b"" or merkle.leaf_hash(entry) == leaf
        return [json.loads(entry)["body"] if entry else None for entry in answer.entries]

    said = [json.loads(body) for body in bodies]
    assert await seen(acme) == [said[0], None, None]
    assert await seen(globex) == [None, said[1], None]
    assert await seen(house) == said

    for actor, mine in ((acme, {0}), (globex, {1}), (house, {0, 1, 2})):
        for index in range(3):
            for method, request in (
                (actor.log.GetEntry, messages.GetEntryRequest(index=index)),
                (actor.log.GetReceipt, messages.GetReceiptRequest(index=index)),
            ):
                if index in mine:
                    await method(request, metadata=actor.metadata)
                    continue
                with pytest.raises(NotFound) as caught, our_errors():
                    await method(request, metadata=actor.metadata)
                assert "globex" not in str(caught.value)


async def test_a_hash_that_another_tenant_sees_confirms_no_guess(world):
    """Of an entry everything else can be known or tried: who says what of whom, and when to the microsecond."""
    auth, house = world.service("auth"), world.actor("auditor", tenant="casemate", scopes="log.read")
    for _ in range(2):
        await _append(auth, body=b'{"tenant":"acme"}')
    stored = [json.loads((await _entry(house, index)).entry) for index in range(2)]
    assert len({entry["salt"] for entry in stored}) == 2
    assert all(len(bytes.fromhex(entry["salt"])) == 16 for entry in stored)
