"""The audit's heads in the log: every replica's, and what they show about a file whose end was cut off."""

from __future__ import annotations

import pytest

from casemate.errors import Unavailable
from casemate.gate.adapters.audit_heads import AUDIT_HEAD, AuditHeads
from casemate.gate.adapters.audit_lines import Head, verify_lines
from tests.services.datasets.reading import logged


async def test_each_replicas_head_is_in_the_log_and_finds_what_was_cut_off(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    log, heads = world.running.stores.log, world.running.audit_heads

    async def append(body: dict) -> int:
        return await log.append_alone(AUDIT_HEAD, body, by="datasets")

    while not await heads.tell(append):  # the event is written by a thread of the audit's
        await trainer.version()

    said = (await logged(world, AUDIT_HEAD))[-1]
    lines = world.settings.audit_file.read_bytes().splitlines()
    whole = [head for head, _ in verify_lines(lines)]
    assert whole[said["number"] - 1] == Head(said["number"], said["sha256"])
    cut = [head for head, _ in verify_lines(lines[: said["number"] - 1])]
    assert len(cut) < said["number"], "a file whose end is gone verifies, and lacks a line that the log knows"
    assert len(said["replica"]) == 16
    assert str(world.settings.audit_file) not in str(said)


def test_nothing_new_is_told_once_and_what_failed_is_told_again(tmp_path):
    now = [Head(3, "a" * 64)]
    heads = AuditHeads(path=tmp_path / "audit.jsonl", head=lambda: now[0])
    told: list[dict] = []

    def refuse(_body: dict) -> None:
        raise Unavailable("the log does not answer")

    with pytest.raises(Unavailable):
        heads.tell_to(refuse)
    assert heads.tell_to(told.append)
    assert not heads.tell_to(told.append)
    now[0] = Head(5, "b" * 64)
    assert heads.tell_to(told.append)
    assert [body["number"] for body in told] == [3, 5]
    other = AuditHeads(path=tmp_path / "other.jsonl", head=lambda: now[0])
    assert other.replica != heads.replica
