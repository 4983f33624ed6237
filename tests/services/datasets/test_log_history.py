"""A log that was rewritten, forked or put back, against what somebody kept of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from casemate.cli.log import _look
from casemate.client.saved_log import HistoryDiffers, LogKeys, SavedLog, verify_file
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import CasemateError, Conflict, OutOfRange, PermissionDenied, Reason, StoredDataUnreadable
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.signing import merkle, tiles
from casemate.signing.checkpoint import ED25519_COSIGNATURE, sign_checkpoint, verification_key, verify_checkpoint
from casemate.signing.cosignature import cosign, verify_cosignature
from casemate.signing.keys import SigningKey
from casemate.signing.log_proof import verify_log_proof
from services.datasets.checkpoints import WitnessAnswer
from services.datasets.log import LogHead
from tests.services.datasets.world import our_errors

ORIGIN, WITNESS = "datasets.casemate.internal/log", "auth.casemate.internal/witness"
LOG_TABLES = ("log_entries", "log_nodes", "log_head", "log_cosigned")
SEEN_AT = datetime(2026, 5, 6, tzinfo=UTC)
ALARMS = "authority_alarms_total"


class OneWitness:
    """A witness by the rules of c2sp.org/tlog-witness, without auth around it."""

    def __init__(self, log_key) -> None:
        self.key = SigningKey.generate()
        self.log_key, self.size, self.root = log_key, 0, b""
        self.asked = 0

    async def cosign(self, *, checkpoint, old_size, proof, log_key):
        self.asked += 1
        seen = verify_checkpoint(checkpoint, ORIGIN, self.log_key())
        assert log_key == verification_key(ORIGIN, self.log_key())
        name = verification_key(WITNESS, self.key.public, ED25519_COSIGNATURE)
        if old_size != self.size:
            return WitnessAnswer("", self.size, name)
        if self.size:
            try:
                merkle.verify_consistency(self.size, seen.size, self.root, seen.root, proof)
            except CasemateError:
                raise Conflict("another history", reason=Reason.EQUIVOCATION) from None
        self.size, self.root = seen.size, seen.root
        return WitnessAnswer(cosign(seen, name=WITNESS, key=self.key, at=SEEN_AT), self.size, name)


async def append(actor, number: int) -> None:
    with our_errors():
        await actor.log.AppendEntry(messages.AppendEntryRequest(kind="release", body=b'{"number":%d}' % number))


async def look(actor, kept: SavedLog) -> SavedLog:
    """What `casemate log watch` does, over this test's stubs."""
    with our_errors():
        note = (await actor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=actor.metadata)).checkpoint
    size = int(note.split("\n")[1])
    proof: list[bytes] | CasemateError = []
    if 0 < kept.size < size:
        try:
            with our_errors():
                request = messages.GetConsistencyProofRequest(first_size=kept.size, second_size=size)
                answer = await actor.log.GetConsistencyProof(request, metadata=actor.metadata)
            proof = list(answer.consistency_proof)
        except CasemateError as error:
            proof = error
    entries, first = [], kept.size
    while first < size:
        answer = await actor.log.ListEntries(messages.ListEntriesRequest(first=first), metadata=actor.metadata)
        entries += answer.entries
        first += len(answer.entries)

    def prove(_first, _second):
        if isinstance(proof, CasemateError):
            raise proof
        return proof

    return kept.advanced(note, prove=prove, fetch=lambda _first, _end: entries)[0]


async def receipt(actor, index: int) -> str:
    with our_errors():
        return (await actor.log.GetReceipt(messages.GetReceiptRequest(index=index), metadata=actor.metadata)).receipt


def unseen(world) -> SavedLog:
    return SavedLog(keys=LogKeys(ORIGIN, world.running.log_key))


@asynccontextmanager
async def superuser(world):
    """A superuser for whom no trigger counts."""
    async with world.sql() as sql:
        await sql.execute("SET session_replication_role = replica")
        yield sql


async def rewritten(world, *, sign: bool) -> None:
    """Writes another first entry, and every hash that follows from it, as SQL; with the MAC's key, its MAC too."""
    async with superuser(world) as sql:
        entries = [row["entry"] for row in await sql.fetch("SELECT entry FROM log_entries ORDER BY index")]
        entries[0] = entries[0].replace(b'"number":0', b'"number":9')
        head, nodes = LogHead(), []
        for entry in entries:
            completed = head.completed(merkle.leaf_hash(entry))
            nodes += completed[1:]
            head = head.after(completed)
        await sql.execute("TRUNCATE log_entries, log_nodes, log_cosigned")
        await sql.executemany(
            "INSERT INTO log_entries (index, entry, leaf_hash) VALUES ($1, $2, $3)",
            [(index, entry, merkle.leaf_hash(entry)) for index, entry in enumerate(entries)],
        )
        await sql.executemany("INSERT INTO log_nodes (level, index, hash) VALUES ($1, $2, $3)", nodes)
        await sql.execute("UPDATE log_head SET size = $1, frontier = $2", head.size, head.to_bytes())
        if sign:
            key = await AuthorityKey.load_or_create(
                LocalKeyRing.load(world.settings.kek.kek_file), world.settings.authority_key
            )
            mac = key.mac("log_head", "log", {"size": head.size, "frontier": head.to_bytes()})
            await sql.execute("UPDATE log_head SET mac = $1", mac)


async def copied(world, *, back: bool) -> None:
    """Keeps a copy of the log's tables, or puts it back: what an old backup does."""
    async with superuser(world) as sql:
        for table in LOG_TABLES:
            if back:
                await sql.execute(f"TRUNCATE {table}")
                await sql.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")  # noqa: S608  # names above
            else:
                await sql.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608  # as above


async def test_watching_takes_in_what_was_appended(world):
    auditor, auth = world.actor(), world.service("auth")
    kept = await look(auditor, unseen(world))
    assert kept.size == 0
    for number in range(5):
        await append(auth, number)
        kept = await look(auditor, kept)
    assert kept.size == 5
    assert (await look(auditor, kept)).size == 5


async def test_a_rewrite_of_every_row_by_a_superuser_is_refused_and_alarms(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    await rewritten(world, sign=False)

    with pytest.raises(StoredDataUnreadable):
        await look(auditor, kept)
    with pytest.raises(StoredDataUnreadable):
        await append(auth, 5)
    assert world.running.metrics.value(ALARMS) >= 2


@pytest.mark.parametrize("more", [0, 3])
async def test_history_rewritten_and_signed_again_with_all_keys_is_caught_by_whoever_kept_a_checkpoint(world, more):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))
    old_receipt = await receipt(auditor, 4)

    await rewritten(world, sign=True)
    for number in range(more):
        await append(auth, 10 + number)

    assert (await look(auditor, unseen(world))).size == 5 + more, "nobody sees it who kept nothing"
    with pytest.raises(HistoryDiffers) as caught:
        await look(auditor, kept)
    for note in caught.value.evidence:
        verify_checkpoint(note, ORIGIN, world.running.log_key)
    fresh = await look(auditor, unseen(world))
    with pytest.raises(HistoryDiffers):
        fresh.require_same_history(verify_file(old_receipt, fresh.keys).checkpoint)
    kept.require_same_history(verify_file(old_receipt, kept.keys).checkpoint)


async def test_a_fork_by_an_old_copy_is_caught_at_the_same_size_and_offline(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(3):
        await append(auth, number)
    await copied(world, back=False)
    await append(auth, 3)
    kept = await look(auditor, unseen(world))
    true_receipt = await receipt(auditor, 3)

    await copied(world, back=True)
    with pytest.raises(HistoryDiffers, match="went back"):
        await look(auditor, kept)
    await append(auth, 4)
    forked_receipt = await receipt(auditor, 3)
    other = await look(auditor, unseen(world))

    assert other.size == kept.size == 4
    with pytest.raises(HistoryDiffers) as caught:
        await look(auditor, kept)
    first, second = (verify_checkpoint(note, ORIGIN, world.running.log_key) for note in caught.value.evidence)
    assert (first.size, first.root != second.root) == (second.size, True)
    kept.require_same_history(verify_file(true_receipt, kept.keys).checkpoint)
    with pytest.raises(HistoryDiffers):
        kept.require_same_history(verify_file(forked_receipt, kept.keys).checkpoint)


async def test_what_is_kept_is_read_back_and_refused_when_it_was_changed(world, tmp_path):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(3):
        await append(auth, number)
    kept = await look(auditor, unseen(world))
    kept.save(tmp_path)
    assert SavedLog.load(tmp_path) == kept
    assert SavedLog.load(tmp_path / "nothing") is None

    leaves = (tmp_path / "leaves").read_bytes()
    (tmp_path / "leaves").write_bytes(leaves[:-1] + bytes([leaves[-1] ^ 1]))
    with pytest.raises(StoredDataUnreadable):
        SavedLog.load(tmp_path)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
async def test_any_two_sizes_have_a_consistency_proof(world, size):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(8):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    with our_errors():
        request = messages.GetConsistencyProofRequest(first_size=size)
        answer = await auditor.log.GetConsistencyProof(request, metadata=auditor.metadata)

    assert answer.second_size == 8
    assert list(answer.consistency_proof) == merkle.consistency_proof(kept.leaves, size)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (1, 3), (2, 1), (2**63, 0), (1, 2**64 - 1)])
async def test_there_is_no_proof_for_sizes_that_the_log_does_not_have(world, first, second):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(2):
        await append(auth, number)
    request = messages.GetConsistencyProofRequest(first_size=first, second_size=second)
    with pytest.raises(OutOfRange), our_errors():
        await auditor.log.GetConsistencyProof(request, metadata=auditor.metadata)


async def test_a_tile_holds_the_leaves_and_entries_come_in_order(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    tile = await auditor.log.GetTile(messages.GetTileRequest(), metadata=auditor.metadata)
    tail = await auditor.log.ListEntries(messages.ListEntriesRequest(first=3), metadata=auditor.metadata)

    assert tile.hashes == b"".join(kept.leaves)
    assert [merkle.leaf_hash(entry) for entry in tail.entries] == list(kept.leaves[3:])
    for call, request in (
        (auditor.log.GetTile, messages.GetTileRequest(level=1)),
        (auditor.log.GetTile, messages.GetTileRequest(level=99, index=2**63)),
        (auditor.log.ListEntries, messages.ListEntriesRequest(first=5)),
    ):
        with pytest.raises(OutOfRange), our_errors():
            await call(request, metadata=auditor.metadata)


async def test_the_log_is_proven_with_its_scope_alone(world):
    await append(world.service("auth"), 0)
    stranger, auditor = world.actor(scopes="datasets.read"), world.actor(scopes="log.read")
    for name, request in (
        ("GetReceipt", messages.GetReceiptRequest()),
        ("GetConsistencyProof", messages.GetConsistencyProofRequest(first_size=1)),
        ("GetTile", messages.GetTileRequest()),
        ("ListEntries", messages.ListEntriesRequest()),
    ):
        with pytest.raises(PermissionDenied), our_errors():
            await getattr(stranger.log, name)(request, metadata=stranger.metadata)
        await getattr(auditor.log, name)(request, metadata=auditor.metadata)


async def test_a_node_that_was_edited_is_data_loss(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    await receipt(auditor, 4)
    async with superuser(world) as sql:
        await sql.execute("UPDATE log_nodes SET hash = sha256('x') WHERE level = 2")
    with pytest.raises(StoredDataUnreadable):
        await receipt(auditor, 4)


async def test_a_log_from_before_its_nodes_gets_them_by_the_migration(stopped_world):
    async with stopped_world.serve() as world:
        for number in range(13):
            await append(world.service("auth"), number)
        async with superuser(world) as sql:
            grown = await sql.fetch("SELECT level, index, hash FROM log_nodes ORDER BY level, index")
            await sql.execute(
                "DROP TABLE log_nodes, log_cosigned, labels, trained_models, trained_models_head, retentions"
            )
            await sql.execute("DROP INDEX uploads_unfinished")
            await sql.execute("DELETE FROM schema_migrations WHERE number >= 3")
    async with stopped_world.serve() as world:
        async with world.sql() as sql:
            assert await sql.fetch("SELECT level, index, hash FROM log_nodes ORDER BY level, index") == grown
        assert (await look(world.actor(), unseen(world))).size == 13


async def test_checkpoints_and_receipts_carry_the_witness(stopped_world):
    stopped_world.witness = witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        for number in range(3):
            await append(auth, number)
            with our_errors():
                shown = await auditor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=auditor.metadata)
        found = verify_log_proof(await receipt(auditor, 1), origin=ORIGIN, public_key=world.running.log_key)

        for checkpoint in (verify_checkpoint(shown.checkpoint, ORIGIN, world.running.log_key), found.checkpoint):
            assert verify_cosignature(checkpoint, name=WITNESS, public_key=witness.key.public).at == SEEN_AT
        keys = LogKeys.parse(shown.log_key, [shown.witness_key])
        assert (await look(auditor, SavedLog(keys=keys))).size == 3
        assert witness.asked == 3, "each head is cosigned once"


async def test_a_service_that_starts_again_learns_where_the_witness_stands(stopped_world):
    stopped_world.witness = witness = OneWitness(lambda: stopped_world.running.log_key)
    for _ in range(2):
        async with stopped_world.serve() as world:
            await append(world.service("auth"), 0)
            found = verify_log_proof(await receipt(world.actor(), 0), origin=ORIGIN, public_key=world.running.log_key)
            verify_cosignature(found.checkpoint, name=WITNESS, public_key=witness.key.public)
    assert witness.size == 2


async def test_a_rewritten_history_is_not_cosigned_and_alarms(stopped_world):
    stopped_world.witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        for number in range(5):
            await append(auth, number)
        await receipt(auditor, 0)

        await rewritten(world, sign=True)

        with pytest.raises(StoredDataUnreadable):
            await receipt(auditor, 0)
        assert world.running.metrics.value(ALARMS) == 1


async def test_a_log_that_its_witness_saw_longer_takes_no_entry_whose_index_was_given_out_before(
    stopped_world, tmp_path
):
    stopped_world.witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        await append(auth, 0)
        await receipt(auditor, 0)
        async with superuser(world) as sql:
            old = await sql.fetchrow("SELECT size, frontier, mac FROM log_head")
            await append(auth, 1)
            with our_errors():
                shown = await auditor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=auditor.metadata)
            keys = LogKeys.parse(shown.log_key, [shown.witness_key])
            (await look(auditor, SavedLog(keys=keys))).save(tmp_path)
            new = await sql.fetchrow("SELECT size, frontier, mac FROM log_head")
            entry = await sql.fetchrow("SELECT * FROM log_entries WHERE index = 1")
            nodes = await sql.fetch("DELETE FROM log_nodes WHERE level > 0 RETURNING level, index, hash")
            await sql.execute("DELETE FROM log_entries WHERE index = 1")
            put = "UPDATE log_head SET size = $1, frontier = $2, mac = $3"
            await sql.execute(put, *old.values())

            with pytest.raises(StoredDataUnreadable) as caught:
                await receipt(auditor, 0)
            with pytest.raises(StoredDataUnreadable):
                await append(auth, 2)
            assert await sql.fetchval("SELECT size FROM log_head") == 1
            with pytest.raises(HistoryDiffers) as found:
                _look(_Refusing(caught.value), tmp_path, None, ())
            assert found.value.evidence == ((tmp_path / "checkpoint").read_text(),)

            places = ", ".join(f"${place}" for place in range(1, len(entry) + 1))
            await sql.execute(f"INSERT INTO log_entries VALUES ({places})", *entry.values())  # noqa: S608  # places alone
            await sql.executemany("INSERT INTO log_nodes (level, index, hash) VALUES ($1, $2, $3)", nodes)
            await sql.execute(put, *new.values())
        await receipt(auditor, 1)
        await append(auth, 2)


class _Refusing:
    """Reads a log whose service answers by this error."""

    def __init__(self, error: CasemateError) -> None:
        self._error = error

    def checkpoint(self):
        raise self._error


async def test_a_witness_that_does_not_answer_holds_nothing_up_and_is_missed(stopped_world):
    class Absent:
        async def cosign(self, **_):
            raise OutOfRange("not there")

    stopped_world.witness = Absent()
    async with stopped_world.serve() as world:
        await append(world.service("auth"), 0)
        keys = LogKeys(ORIGIN, world.running.log_key)
        text = await receipt(world.actor(), 0)
        assert verify_file(text, keys)
        with pytest.raises(CasemateError):
            verify_file(text, LogKeys(ORIGIN, keys.log, ((WITNESS, SigningKey.generate().public),)))


def test_two_checkpoints_of_one_size_by_one_key_are_a_fork(tmp_path):
    key = SigningKey.generate()
    leaves = tuple(merkle.leaf_hash(bytes([number])) for number in range(4))
    keys = LogKeys(ORIGIN, key.public)
    genuine = verify_checkpoint(sign_checkpoint(ORIGIN, 4, merkle.root(leaves), key), ORIGIN, key.public)
    forked = verify_checkpoint(sign_checkpoint(ORIGIN, 4, merkle.root(leaves[::-1]), key), ORIGIN, key.public)
    kept = SavedLog(keys=keys, checkpoint=genuine, leaves=leaves)
    kept.require_same_history(genuine)
    with pytest.raises(HistoryDiffers):
        kept.require_same_history(forked)


def test_a_proof_in_a_large_log_takes_two_reads_of_few_rows():
    spans = [*tiles.inclusion_ranges(123_456, 1_000_000), *tiles.consistency_ranges(1_000_000, 1_000_000)]
    assert len(tiles.nodes_of([*spans, (0, 1_000_000)])) < 40
