"""The superuser of PostgreSQL, with time and care: genuine parts put where they do not belong."""

from __future__ import annotations

import json

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.datasets.v1 import log_service_pb2
from casemate.errors import NotFound, StoredDataUnreadable
from casemate.sealing.keys import DataKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import BatchContext, SealedBatch, open_batch, seal_batch
from services.datasets.key_store import DataKeyStore
from tests.services.datasets.reading import logged
from tests.services.datasets.test_labels import by_label, move, versions
from tests.services.datasets.world import manifest_of, our_errors

HEADERS = (
    "UPDATE batches a SET salt = b.salt, commitment = b.commitment FROM batches b "
    "WHERE a.upload <> b.upload AND a.number = b.number"
)
ROWS = (
    "UPDATE sealed_rows a SET sealed = b.sealed FROM sealed_rows b WHERE a.upload <> b.upload AND a.ordinal = b.ordinal"
)
KEYS = (
    "UPDATE data_keys a SET wrapped = b.wrapped FROM data_keys b "
    "WHERE a.purpose = 'dataset-rows' AND b.purpose = 'dataset-rows' AND a.id <> b.id"
)


@pytest.mark.parametrize("other", ["dataset", "tenant"])
async def test_rows_of_another_dataset_or_tenant_do_not_open_whatever_moves_with_them(world, other):
    """E11: rows alone, with their headers, with their wrapped keys."""
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(dataset="digits")))
    if other == "dataset":
        stranger, name = trainer, "letters"
        await trainer.push_all(world.signed(manifest_of(dataset=name)), dataset=name)
    else:
        stranger, name = world.actor(tenant="globex"), "digits"
        world.signers = [*world.signers, world.signer(key := type(world.supplier).generate(), tenant="globex")]
        world.tell()
        await stranger.push_all(world.signed(manifest_of(tenant="globex"), key))
    async with world.sql() as sql, world.sql(data_keys=True) as keys:
        for change in ("rows", "headers", "keys"):
            done = await {"rows": sql, "headers": sql, "keys": keys}[change].execute(
                {"rows": ROWS, "headers": HEADERS, "keys": KEYS}[change]
            )
            assert not done.endswith(" 0")
            world.running.ring.drop()
            for actor, dataset in ((trainer, "digits"), (stranger, name)):
                with pytest.raises(StoredDataUnreadable):
                    await actor.pull(dataset)
        await sql.execute(ROWS)
        await sql.execute(HEADERS)
        await keys.execute(KEYS)
    assert len((await trainer.pull("digits"))[1]) == len((await stranger.pull(name))[1]) == 3


async def test_an_older_sealing_of_the_same_batch_put_back_row_by_row_is_data_loss(world):
    """E12: a batch that a retry sealed twice: rows of one sealing do not open beside the header of the other."""
    trainer = world.actor()
    manifest = manifest_of()
    await trainer.push_all(world.signed(manifest))
    async with world.sql() as sql:
        upload, key_id = await sql.fetchrow("SELECT id, data_key FROM uploads")
        keys: DataKeyStore = world.running.stores.keys
        from services.datasets.key_store import rows_context  # beside its one use
        from services.datasets.push import batch_context

        key = await keys.open(key_id, rows_context("acme", "digits", 1))
        again = seal_batch(key, batch_context(manifest, 0), [b"1,one", b"2,two"], first_ordinal=0)
        await sql.execute("UPDATE sealed_rows SET sealed = $1 WHERE upload = $2 AND ordinal = 0", again.rows[0], upload)
        with pytest.raises(StoredDataUnreadable):
            await trainer.pull()
        # The whole other sealing of the very same rows opens: it is what was signed.
        await sql.execute("UPDATE sealed_rows SET sealed = $1 WHERE upload = $2 AND ordinal = 1", again.rows[1], upload)
        await sql.execute(
            "UPDATE batches SET salt = $1, commitment = $2 WHERE upload = $3 AND number = 0",
            *(again.salt, again.commitment, upload),
        )
    assert [bytes(record) for record in (await trainer.pull())[1][0].records] == [b"1,one", b"2,two"]


async def test_a_whole_row_of_authority_put_back_is_not_seen_here_and_is_in_the_log(world):
    """E12: out of scope, as docs/threat-model.md says: what was genuine once verifies; the log has what came after."""
    actor, _ = await versions(world, 2)
    await move(actor, "golden", 1, 0)
    async with world.sql() as sql:
        old = await sql.fetchrow("SELECT * FROM labels")
        await move(actor, "golden", 2, 1)
        await sql.execute("DELETE FROM labels")
        await sql.execute("INSERT INTO labels VALUES ($1, $2, $3, $4, $5, $6)", *old.values())
    assert await by_label(actor, "golden") == 1
    moves = await logged(world, "label")
    assert moves[-1]["version"] == 2, "whoever reads the log finds that it was moved"
    assert old["log_index"] < len(moves) + 4


async def test_a_version_inserted_by_a_superuser_is_no_version(world):
    """Copied whole under another name or number, MAC and all."""
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql() as sql:
        names = [
            row["attname"]
            for row in await sql.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'uploads'::regclass AND attnum > 0"
            )
        ]
        for column, value in (("version", "2"), ("dataset", "'letters'"), ("tenant", "'globex'")):
            made = ", ".join("gen_random_uuid()" if n == "id" else value if n == column else n for n in names)
            await sql.execute(
                f"INSERT INTO uploads ({', '.join(names)}) SELECT {made} FROM uploads WHERE version = 1 "  # noqa: S608  # names of this table
                "AND dataset = 'digits' AND tenant = 'acme'"
            )
    with pytest.raises(StoredDataUnreadable):
        await trainer.pull(version=2)
    with pytest.raises(StoredDataUnreadable):
        await trainer.pull("letters")
    with pytest.raises(StoredDataUnreadable):
        await world.actor(tenant="globex").pull()
    assert len((await trainer.pull(version=1))[1]) == 3


async def test_a_wrap_from_before_the_rotation_put_back_opens_until_its_version_is_removed(world):
    """The same data key under the older KEK: nothing is gained by it, and rewrapping finds it again."""
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql(data_keys=True) as sql:
        old = await sql.fetchval("SELECT wrapped FROM data_keys WHERE purpose = 'dataset-rows'")
        LocalKeyRing.rotate(world.settings.kek.kek_file)
        operator = world.actor("operator", tenant="casemate", scopes="admin")
        await operator.rewrap()
        assert ("dataset-rows", 2) in await operator.kek_status()
        await sql.execute("UPDATE data_keys SET wrapped = $1 WHERE purpose = 'dataset-rows'", old)
    world.running.ring.drop()
    assert len((await trainer.pull())[1]) == 3
    assert (await operator.kek_status())["dataset-rows", 1] == 1, "and an operator sees that it is back"
    await operator.rewrap()
    assert ("dataset-rows", 1) not in await operator.kek_status()


async def test_a_promotion_that_sql_took_back_is_still_in_the_log_and_the_version_is_not_given_out(world):
    trainer = world.actor()
    promoted = await trainer.push_all(world.signed())
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE manifests DROP CONSTRAINT manifests_upload_fkey")
        await sql.execute("ALTER TABLE batches DROP CONSTRAINT batches_upload_fkey")
        await sql.execute("DELETE FROM uploads")
    with pytest.raises(NotFound):
        await trainer.pull()
    with our_errors():
        request = log_service_pb2.GetEntryRequest(index=promoted.log_index)
        entry = await trainer.log.GetEntry(request, metadata=trainer.metadata)
    assert json.loads(entry.entry)["body"]["root"] == promoted.root.hex()


def test_one_ciphertext_that_opens_under_two_keys_is_told_apart_by_its_commitment():
    """AES-GCM alone does not commit to its key: such a ciphertext is made here, and the batch's header refuses it."""
    first, second, nonce = bytes(32), bytes([1]) * 32, bytes(12)
    ciphertext = _of_both(first, second, nonce)
    assert AESGCM(first).decrypt(nonce, ciphertext, None) != AESGCM(second).decrypt(nonce, ciphertext, None)
    with pytest.raises(InvalidTag):
        AESGCM(bytes([2]) * 32).decrypt(nonce, ciphertext, None)

    context = BatchContext(tenant="acme", dataset="digits", version=1, batch=0, schema_sha256=bytes(32))
    sealed = seal_batch(DataKey(first), context, [b"row"], first_ordinal=0)
    assert open_batch(DataKey(first), context, sealed) == [b"row"]
    with pytest.raises(StoredDataUnreadable):
        open_batch(DataKey(second), context, sealed)
    other = seal_batch(DataKey(second), context, [b"row"], first_ordinal=0)
    mixed = SealedBatch(salt=sealed.salt, commitment=other.commitment, first_ordinal=0, rows=sealed.rows)
    for key in (first, second):
        with pytest.raises(StoredDataUnreadable):
            open_batch(DataKey(key), context, mixed)


def _of_both(first: bytes, second: bytes, nonce: bytes) -> bytes:
    """A ciphertext and one tag that two keys accept: two blocks, the second chosen so that the tags meet."""
    hashes = [_block(key, bytes(16)) for key in (first, second)]
    masks = [_block(key, nonce + (1).to_bytes(4, "big")) for key in (first, second)]
    one, length = 1 << 127, int.from_bytes((0).to_bytes(8, "big") + (256).to_bytes(8, "big"), "big")
    # Tag = C1·H³ + C2·H² + L·H + mask for each key; with C1 fixed, C2 follows from setting the two equal.
    known = 0
    for h, mask in zip(hashes, masks, strict=True):
        squared = _times(h, h)
        known ^= _times(one, _times(squared, h)) ^ _times(length, h) ^ mask
    squares = _times(hashes[0], hashes[0]) ^ _times(hashes[1], hashes[1])
    two = _times(known, _inverse(squares))
    h = hashes[0]
    tag = _times(one, _times(_times(h, h), h)) ^ _times(two, _times(h, h)) ^ _times(length, h) ^ masks[0]
    return b"".join(part.to_bytes(16, "big") for part in (one, two, tag))


def _block(key: bytes, block: bytes) -> int:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # GCM's own hash key and mask
    return int.from_bytes(encryptor.update(block), "big")


def _times(x: int, y: int) -> int:
    """The product in GCM's field (SP 800-38D section 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def _inverse(x: int) -> int:
    """x to the power of 2^128 - 2."""
    found, power = 1 << 127, x
    for _ in range(127):
        power = _times(power, power)
        found = _times(found, power)
    return found
