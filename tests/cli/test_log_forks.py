"""A log that shows two faces: what `casemate log verify` and `watch` say of it, and by which status they end."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from casemate.cli.log import DIFFERS, log_command, look
from casemate.client.saved_log import SavedLog, ShownEntry
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import SignatureInvalid
from casemate.signing import merkle
from casemate.signing.checkpoint import ED25519_COSIGNATURE, sign_checkpoint, verification_key, verify_checkpoint
from casemate.signing.cosignature import cosign, with_cosignature
from casemate.signing.keys import SigningKey
from casemate.signing.log_proof import write_log_proof

ORIGIN, WITNESS = "datasets.casemate.internal/log", "auth.casemate.internal/witness"
AT = datetime(2026, 5, 6, tzinfo=UTC)


@dataclass
class Keys:
    """The log's key and its witness's."""

    log: SigningKey = field(default_factory=SigningKey.generate)
    witness: SigningKey = field(default_factory=SigningKey.generate)

    def arguments(self, *, witness: bool = True) -> list[str]:
        said = ["--log-key", verification_key(ORIGIN, self.log.public)]
        return [*said, "--witness-key", self.witness_key] if witness else said

    @property
    def witness_key(self) -> str:
        return verification_key(WITNESS, self.witness.public, ED25519_COSIGNATURE)


@dataclass
class Log:
    """A service that says whatever its entries are, signed by the log's key; cosigned or not."""

    keys: Keys
    entries: list[bytes]
    cosigned: bool = True
    origin: str = ORIGIN

    @property
    def leaves(self) -> list[bytes]:
        return [merkle.leaf_hash(entry) for entry in self.entries]

    def note(self, size: int | None = None) -> str:
        leaves = self.leaves[:size]
        note = sign_checkpoint(ORIGIN, len(leaves), merkle.root(leaves), self.keys.log)
        if not self.cosigned:
            return note
        checkpoint = verify_checkpoint(note, ORIGIN, self.keys.log.public)
        return with_cosignature(note, cosign(checkpoint, name=WITNESS, key=self.keys.witness, at=AT))

    def receipt(self, index: int) -> str:
        return write_log_proof(index, self.entries[index], merkle.inclusion_proof(self.leaves, index), self.note())

    def checkpoint(self) -> messages.GetCheckpointResponse:
        key = verification_key(ORIGIN, self.keys.log.public)
        return messages.GetCheckpointResponse(checkpoint=self.note(), log_key=key, witness_key=self.keys.witness_key)

    def consistency(self, first_size: int, second_size: int) -> list[bytes]:
        return merkle.consistency_proof(self.leaves[:second_size], first_size)

    def read(self, first: int, end: int) -> list[ShownEntry]:
        return [ShownEntry(merkle.leaf_hash(entry), entry) for entry in self.entries[first:end]]


class Reader:
    """Reads a `Log` as `LogReader` reads a service."""

    def __init__(self, log: Log) -> None:
        self.origin = log.origin
        self.checkpoint = log.checkpoint
        self.consistency = log.consistency
        self.entries = log.read


def entries(count: int, *, face: str = "true") -> list[bytes]:
    return [b'{"number":%d,"face":"%s"}' % (number, face.encode()) for number in range(count)]


def verify(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(log_command, ["verify", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def keys():
    return Keys()


@pytest.fixture
def true(keys):
    return Log(keys, entries(5))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_two_signed_checkpoints_of_one_size_are_a_fork_to_whoever_has_nothing_but_the_logs_key(keys, true, tmp_path):
    """A split view: each of two people was shown one, and they compare."""
    split = Log(keys, entries(5, face="split"), cosigned=False)
    mine, same, theirs = (
        written(tmp_path / name, log.note()) for name, log in (("mine", true), ("same", true), ("theirs", split))
    )

    status, said = verify(mine, theirs, *keys.arguments(witness=False))
    assert status == DIFFERS == 3
    assert "HISTORY DIFFERS: the log signed two trees of 5 entries" in said
    for path, log in ((mine, true), (theirs, split)):
        assert f"{path}: 5 entries, root {merkle.root(log.leaves).hex()[:16]}" in said

    assert verify(mine, same, *keys.arguments(witness=False))[0] == 0
    other = written(tmp_path / "other", Log(Keys(), entries(5, face="split")).note())
    status, said = verify(mine, other, *keys.arguments(witness=False))
    assert (status, "HISTORY DIFFERS" in said) == (1, False), "what the log did not sign accuses nobody"


def test_a_face_without_its_witness_is_told_from_the_cosigned_one(keys, true, tmp_path):
    split = Log(keys, entries(5, face="split"), cosigned=False)
    mine, theirs = written(tmp_path / "mine", true.note()), written(tmp_path / "theirs", split.receipt(2))

    status, said = verify(mine, theirs, *keys.arguments())
    assert status == DIFFERS
    assert [line.rstrip(")").endswith("(cosigned") for line in said.splitlines() if "HISTORY" in line] == [False]
    assert "(cosigned); " in said
    assert said.rstrip().endswith("(not cosigned)")

    alone = verify(theirs, *keys.arguments())
    assert alone[0] == 1, "by itself it is only without its witness"
    assert "not cosigned by this witness" in alone[1]
    assert verify(mine, written(theirs, true.receipt(2)), *keys.arguments())[0] == 0


@pytest.mark.parametrize("more", [0, 3], ids=["of one size", "that grew"])
def test_a_watcher_who_is_shown_another_face_accuses_before_it_misses_the_witness(keys, true, tmp_path, capsys, more):
    kept = tmp_path / "kept"
    look(Reader(true), kept)
    before = (kept / "checkpoint").read_text()
    split = Log(keys, entries(5 + more, face="split"), cosigned=False)

    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            look(Reader(split), kept)
        assert ended.value.code == DIFFERS
        said = capsys.readouterr().err
        assert "HISTORY DIFFERS" in said
        assert "(cosigned)" in said
        assert "(not cosigned)" in said

    evidence = [path.read_text() for path in sorted(kept.glob("evidence-*"))]
    assert evidence == [before, split.note()], "said twice, kept once"
    assert (kept / "checkpoint").read_text() == before
    assert verify(*sorted(kept.glob("evidence-*")), *keys.arguments(witness=False))[0] == (0 if more else DIFFERS)

    look(Reader(Log(keys, entries(5 + more))), kept)
    assert SavedLog.load(kept).size == 5 + more


def test_a_history_that_was_rewritten_and_cosigned_again_is_found_offline_by_what_was_kept(keys, true, tmp_path):
    """Both keys are the attacker's: only what was kept tells."""
    kept = tmp_path / "kept"
    look(Reader(true), kept)
    rewritten = Log(keys, [b'{"number":0,"face":"rewritten"}', *true.entries[1:]])

    for size in range(1, 6):
        status, said = verify(written(tmp_path / "note", rewritten.note(size)), "--saved", kept)
        assert (status, "HISTORY DIFFERS" in said) == (DIFFERS, True)
        assert verify(written(tmp_path / "note", true.note(size)), "--saved", kept)[0] == 0
    assert verify(written(tmp_path / "receipt", rewritten.receipt(4)), "--saved", kept)[0] == DIFFERS
    assert verify(written(tmp_path / "receipt", true.receipt(4)), "--saved", kept)[0] == 0


def test_a_true_history_without_its_witness_is_no_accusation(keys, true, tmp_path, capsys):
    kept = tmp_path / "kept"
    look(Reader(true), kept)
    grown = Log(keys, entries(7), cosigned=False)

    with pytest.raises(SignatureInvalid):
        look(Reader(grown), kept)
    assert "HISTORY" not in capsys.readouterr().err
    assert not list(kept.glob("evidence-*"))
    assert SavedLog.load(kept).size == 5, "and nothing of it is kept"
    grown.cosigned = True
    look(Reader(grown), kept)
    assert SavedLog.load(kept).size == 7


def test_evidence_is_bounded_and_the_first_is_never_overwritten(keys, true, tmp_path):
    kept = tmp_path / "kept"
    look(Reader(true), kept)
    for number in range(40):
        with pytest.raises(SystemExit):
            look(Reader(Log(keys, entries(5, face=f"face {number}"), cosigned=False)), kept)
    assert len(list(kept.glob("evidence-*"))) == 16
    assert (kept / "evidence-2").read_text() == Log(keys, entries(5, face="face 0"), cosigned=False).note()
