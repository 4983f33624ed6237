"""What the tests of the log share: a witness, what is kept, and what a superuser of the database does to it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime

from casemate.client.saved_log import LogKeys, SavedLog, ShownEntry
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import CasemateError, Conflict, Reason
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.signing import merkle
from casemate.signing.checkpoint import ED25519_COSIGNATURE, verification_key, verify_checkpoint
from casemate.signing.cosignature import cosign
from casemate.signing.keys import SigningKey
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
        body = b'{"number":%d,"tenant":"acme"}' % number
        await actor.log.AppendEntry(messages.AppendEntryRequest(kind="release", body=body))


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
        entries += map(ShownEntry, answer.leaf_hashes, [entry or None for entry in answer.entries])
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
