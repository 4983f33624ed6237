"""Our client in front of a service that lies: its own answers, changed on their way back. Nothing else is believed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest
import pytest_asyncio

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import CasemateError, DigestMismatch, SignatureInvalid, StoredDataUnreadable
from casemate.signing import dsse, merkle
from casemate.signing.checkpoint import verification_key
from casemate.signing.columns import Column
from casemate.signing.export_receipt import ExportReceipt, sign_export_receipt
from casemate.signing.keys import SigningKey
from casemate.signing.shred_receipt import ShredReceipt, sign_shred_receipt
from casemate.signing.statements import ChunkDigest, DatasetManifest
from tests.services.datasets import conftest
from tests.services.datasets.liar import lied_to
from tests.services.datasets.world import SCHEMA, World, build_settings, manifest_of

LOG = "datasets.casemate.internal/log"
LINES = (b'1,"one\nuno"\n2,two\n', b"3,three\n", b"4,four\n5,five\n6,six\n")
ROWS = [b'1,"one\nuno"', b"2,two", b"3,three", b"4,four", b"5,five", b"6,six"]
IDS = (Column(name="id", type="integer"),)
FORGER = SigningKey.generate()
"""Of whoever runs the service that lies: a caller without `log_key` takes the key that comes."""


def of_ids(*ids: int) -> bytes:
    return pa.record_batch([pa.array(ids, pa.int64())], names=["id"]).serialize().to_pybytes()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(embedded_postgres, leaf, tmp_path_factory):
    """One service with a dataset of CSV, of two versions, and one of Arrow."""
    database, data_keys = [await conftest._emptied(embedded_postgres, name) for name in ("lying_rows", "lying_keys")]
    settings = build_settings(
        identity=leaf("service", service="datasets"),
        database=database,
        data_keys=data_keys,
        state=tmp_path_factory.mktemp("lying"),
    )
    world = World(settings=settings, leaf=leaf, superuser=embedded_postgres.superuser)
    async with world.serve():
        owner = world.actor()
        first = of_lines()
        await owner.push_all(world.signed(first), LINES)
        second = replace(first, version=2, previous_root=first.root, upload_id="second" * 4)
        await owner.push_all(world.signed(second), LINES)
        rows = (of_ids(1, 2), of_ids(3))
        digest = ChunkDigest(leaf_hash=merkle.leaf_hash(*rows), bytes=sum(map(len, rows)), rows=2, records=3)
        arrow = {"format": "arrow", "schema": IDS, "chunks": (digest,), "rows": 2, "bytes": digest.bytes}
        manifest = replace(manifest_of(dataset="ids"), **arrow, root=digest.leaf_hash)
        await owner.push_all(world.signed(manifest), [b"".join(rows)], dataset="ids")
        yield world


def of_lines() -> DatasetManifest:
    """The manifest of the lines, in which a line feed inside quotes ends no row."""
    manifest = manifest_of(LINES)
    return replace(manifest, rows=6, chunks=(replace(manifest.chunks[0], rows=2), *manifest.chunks[1:]))


def pulled(
    world: World, change=lambda said: said, dataset: str = "digits", version: int = 1, **keywords
) -> list[bytes]:
    with lied_to(world, change) as datasets:
        trusted = [world.supplier.public]
        reading = datasets.pull(dataset, version, tenant="acme", trusted=trusted, **keywords)
        rows = reading.records()
        assert reading.receipt is not None
        return rows


def edited(place: int, **changes: object) -> Callable[[list], list]:
    """One batch, with fields of it replaced."""

    def change(said: list) -> list:
        batch = said[1 + place].batch
        for name, value in changes.items():
            if isinstance(value, list):
                del getattr(batch, name)[:]
                getattr(batch, name).extend(value)
            else:
                setattr(batch, name, value)
        return said

    return change


def receipt_of(**changes: object) -> Callable[[list], list]:
    """The receipt with fields replaced, signed by whoever lies."""

    def change(said: list) -> list:
        last = said[-1].receipt
        receipt = ExportReceipt.parse(dsse.peek_payload(last.receipt, json.loads(last.receipt)["payloadType"]))
        last.receipt = sign_export_receipt(replace(receipt, **changes), FORGER)
        last.log_key = verification_key(changes.get("log", LOG), FORGER.public)
        return said

    return change


def moment(seconds: int, nanos: int = 0) -> Callable[[list], list]:
    def change(said: list) -> list:
        said[0].description.promoted_at.seconds = seconds
        said[0].description.promoted_at.nanos = nanos
        return said

    return change


LIES = {
    "nothing": lambda _said: [],
    "no description": lambda said: said[1:],
    "a batch for a description": lambda said: [said[1], *said[1:]],
    "no batch": lambda said: [said[0], said[-1]],
    "a batch less": lambda said: said[:1] + said[2:],
    "the last batch less": lambda said: said[:-2] + said[-1:],
    "a batch twice": lambda said: [*said[:2], said[1], *said[2:]],
    "batches swapped": lambda said: [said[0], said[2], said[1], *said[3:]],
    "a batch more": lambda said: [*said[:-1], said[-2], said[-1]],
    "no receipt": lambda said: said[:-1],
    "a batch behind the receipt": lambda said: [*said, said[-2]],
    "two receipts": lambda said: [*said, said[-1]],
    "another number": edited(1, number=2),
    "another ordinal": edited(1, first_ordinal=3),
    "other bytes": edited(1, records=[b"3,thrEE"]),
    "a row less": edited(2, records=[b"4,four", b"5,five"]),
    "a row more": edited(1, records=[b"3,three", b""]),
    "rows cut elsewhere": edited(0, records=[b'1,"one', b'uno"\n2,two']),
    "a proof of another batch": lambda said: edited(1, inclusion_proof=list(said[1].batch.inclusion_proof))(said),
    "no proof": edited(0, inclusion_proof=[]),
    "a moment too late": moment(2**40),
    "a moment too early": moment(-(2**62)),
    "a moment of too many nanoseconds": moment(1, 2**31 - 1),
    "a receipt of another version": receipt_of(version=2),
    "a receipt of another root": receipt_of(root="0" * 64),
    "a receipt of another manifest": receipt_of(manifest_sha256="0" * 64),
    "a receipt of another tenant": receipt_of(tenant="globex"),
    "a receipt of another caller": receipt_of(caller="spiffe://casemate.internal/t/acme/other"),
    "a receipt of another shard": receipt_of(shards=2),
    "a receipt of another shuffle": receipt_of(shuffle_seed=7),
    "a receipt of fewer batches": receipt_of(batches=2),
    "a receipt of other batches": receipt_of(batches_sha256="0" * 64),
    "a receipt of more rows": receipt_of(rows=7),
    "a receipt of another log": receipt_of(log="datasets.elsewhere/log"),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", LIES)
async def test_a_lie_of_a_pull_is_told_as_one_of_our_errors(house, name):
    with pytest.raises((StoredDataUnreadable, DigestMismatch)) as caught:
        await asyncio.to_thread(pulled, house, LIES[name])
    if "moment" in name:
        assert [violation.field for violation in caught.value.violations] == ["promoted_at"]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_answers_without_a_lie_are_taken(house):
    for change in (lambda said: said, receipt_of(), moment(1), edited(0, records=ROWS[:2])):
        assert await asyncio.to_thread(pulled, house, change) == ROWS
    with pytest.raises(SignatureInvalid):  # and who knows the log's key takes no other for it
        await asyncio.to_thread(pulled, house, receipt_of(), log_key=verification_key(LOG, house.running.log_key))


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_of_arrow_that_are_cut_elsewhere_are_refused(house):
    one, two = of_ids(1, 2), of_ids(3)
    for rows in ([one + two, b""], [one[:-8], one[-8:] + two], [b"", one + two]):
        with pytest.raises(StoredDataUnreadable):
            await asyncio.to_thread(pulled, house, edited(0, records=rows), "ids")
    assert await asyncio.to_thread(pulled, house, edited(0, records=[one, two]), "ids") == [one, two]


@pytest.mark.asyncio(loop_scope="module")
async def test_another_version_than_was_asked_for_is_not_taken_for_it(house):
    """Genuinely signed, by the right key: an older one in place of the newer."""
    kept = []

    def keep(said: list) -> list:
        kept.append(said)
        return said

    assert await asyncio.to_thread(pulled, house, keep, version=1) == ROWS
    with pytest.raises(StoredDataUnreadable):
        await asyncio.to_thread(pulled, house, lambda _said: kept[0], version=2)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_manifest_that_no_trusted_key_signed_is_not_taken_whatever_the_service_says_of_it(house):
    def change(said: list) -> list:
        said[0].description.manifest = house.signed(of_lines(), FORGER)
        said[0].description.signer_key_id = house.supplier.public.key_id
        return said

    with pytest.raises(CasemateError) as caught:
        await asyncio.to_thread(pulled, house, change)
    assert caught.value.reason.name == "SIGNER_UNTRUSTED"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("field", ["promoted_at", "shredded_at"])
async def test_a_described_moment_out_of_range_is_named(house, field):
    def described(seconds: int) -> messages.GetVersionResponse:
        def change(said: list) -> list:
            getattr(said[0], field).seconds = seconds
            return said

        with lied_to(house, change) as datasets:
            return datasets.describe("digits", 1)

    assert getattr(await asyncio.to_thread(described, 1), field).seconds == 1
    with pytest.raises(StoredDataUnreadable) as caught:
        await asyncio.to_thread(described, 2**60)
    assert caught.value.violations[0].field == field


@pytest.mark.asyncio(loop_scope="module")
async def test_a_description_of_another_version_than_was_asked_for_is_refused(house):
    def described(version: int) -> int:
        def change(said: list) -> list:
            said[0].version = version
            return said

        with lied_to(house, change) as datasets:
            return datasets.describe("digits", 1).version

    assert await asyncio.to_thread(described, 1) == 1
    with pytest.raises(StoredDataUnreadable):
        await asyncio.to_thread(described, 2)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("lie", [{"version": 7}, {"root": bytes(32)}, {"manifest": b"forged"}], ids=" ".join)
async def test_who_names_whom_they_trust_signs_what_follows_the_version_that_was_signed(house, lie):
    """Without, the next number and the previous root are the service's word, and signed as such."""
    latest = (await house.actor().pull("digits"))[0]

    def change(said: list) -> list:
        for name, value in lie.items():
            setattr(said[0], name, house.signed(of_lines(), FORGER) if value == b"forged" else value)
        return said

    def following(change, trusted) -> tuple[int, bytes | None]:
        with lied_to(house, change) as datasets:
            made = datasets.manifest(
                lambda: [b"1,one"], tenant="acme", dataset="digits", schema=SCHEMA, trusted=trusted
            )
        return made.version, made.previous_root

    true = (latest.version + 1, latest.root)
    trusted = [house.supplier.public]
    assert await asyncio.to_thread(following, lambda said: said, trusted) == true
    if "manifest" in lie:
        with pytest.raises(CasemateError) as caught:
            await asyncio.to_thread(following, change, trusted)
        assert caught.value.reason.name == "SIGNER_UNTRUSTED"
    else:
        assert await asyncio.to_thread(following, change, trusted) == true
        assert await asyncio.to_thread(following, change, None) != true


def answers(**changes: object) -> Callable[[int, messages.PushDatasetResponse], list]:
    """Changes the promotion."""

    def each(_number: int, said: messages.PushDatasetResponse) -> list:
        if said.HasField("promoted"):
            for name, value in changes.items():
                setattr(said.promoted, name, value)
        return [said]

    return each


def offsets(**changes: int) -> Callable[[int, messages.PushDatasetResponse], list]:
    """Changes the offset of answers, by their number; counted from 0, which answers the manifest."""

    def each(number: int, said: messages.PushDatasetResponse) -> list:
        said.next_offset = changes.get(f"answer_{number}", said.next_offset)
        return [said]

    return each


def early(number: int, said: messages.PushDatasetResponse) -> list:
    """A promotion of nothing, right behind the manifest."""
    if number:
        return [said]
    done = manifest_of(CHUNK)
    promoted = messages.PromotedVersion(version=1, root=done.root, rows=done.rows)
    return [messages.PushDatasetResponse(next_offset=0, promoted=promoted)]


CHUNK = (b"1,one\n2,two\n", b"3,three\n")
PUSH_LIES = {
    "another version": answers(version=7),
    "another root": answers(root=bytes(32)),
    "other rows": answers(rows=7),
    "before it was sent": early,
    "beyond its end": offsets(answer_0=21),
    "back": offsets(answer_2=3),
    "without end": lambda _number, said: [said] * 100,
    "never": lambda _number, said: [] if said.HasField("promoted") else [said],
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", [*PUSH_LIES, ""], ids=lambda name: name or "the truth")
async def test_a_lie_about_a_push_is_told_and_its_end_is_believed_as_signed_alone(house, name):
    dataset = f"push{len(name)}-{name[:3].strip().lower()}".strip("-")
    manifest = manifest_of(CHUNK, dataset=dataset)

    def push():
        with lied_to(house, each=PUSH_LIES.get(name, lambda _number, said: [said])) as datasets:
            return datasets.push_envelope(house.signed(manifest), iter(CHUNK), dataset=dataset)

    if name:
        with pytest.raises(StoredDataUnreadable):
            await asyncio.to_thread(push)
    else:
        done = await asyncio.to_thread(push)
        assert (done.version, done.root, done.rows) == (1, manifest.root, manifest.rows)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_receipt_of_a_shredding_is_that_of_this_log_and_version(house):
    owner = house.actor()
    await owner.push_all(house.signed(manifest_of(dataset="gone")), dataset="gone")

    def forged(**changes: object) -> Callable[[list], list]:
        def change(said: list) -> list:
            kind = json.loads(said[0].receipt)["payloadType"]
            receipt = replace(ShredReceipt.parse(dsse.peek_payload(said[0].receipt, kind)), **changes)
            said[0].receipt = sign_shred_receipt(receipt, FORGER)
            said[0].log_key = verification_key(receipt.log, FORGER.public)
            return said

        return change

    def shredded(change, log_key: str | None = None) -> int:
        with lied_to(house, change) as datasets:
            return datasets.shred("gone", 1, log_key=log_key).receipt.version

    own = verification_key(LOG, house.running.log_key)
    assert await asyncio.to_thread(shredded, lambda said: said, own) == 1
    assert await asyncio.to_thread(shredded, forged()) == 1, "without a key of one's own, the service's word"
    for lie in ({"version": 2}, {"dataset": "digits"}, {"tenant": "globex"}, {"log": "datasets.elsewhere/log"}):
        with pytest.raises(StoredDataUnreadable):
            await asyncio.to_thread(shredded, forged(**lie))
    with pytest.raises(SignatureInvalid):
        await asyncio.to_thread(shredded, forged(), own)
