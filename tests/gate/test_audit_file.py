"""The audit file: whole lines, one chain, nothing lost without a count."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime

import pytest

from casemate.errors import ConfigurationError
from casemate.gate.adapters.audit_file import AuditFile, verify_chain
from casemate.gate.core.audit import AuditEvent


def event(number: int) -> AuditEvent:
    return AuditEvent(
        at=datetime.now(UTC), request_id=f"request-{number}", method="/a.B/C", decision="denied", reason="TOKEN_MISSING"
    )


def written(path):
    return path.read_bytes().splitlines()


def test_events_are_lines_of_one_chain_across_restarts(tmp_path):
    path = tmp_path / "audit" / "auth.jsonl"
    for start in (0, 3):
        audit = AuditFile(path)
        for number in range(start, start + 3):
            audit.record(event(number))
        audit.close()
        audit.close()
    lines = written(path)
    assert verify_chain(lines) == 6
    assert [json.loads(line)["request_id"] for line in lines] == [f"request-{number}" for number in range(6)]
    assert "tenant" not in json.loads(lines[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_changed_removed_or_inserted_line_breaks_the_chain_there(tmp_path):
    audit = AuditFile(tmp_path / "a.jsonl")
    for number in range(5):
        audit.record(event(number))
    audit.close()
    lines = written(tmp_path / "a.jsonl")
    assert verify_chain(lines) == 5
    for odd, number in (
        ([*lines[:2], lines[2].replace(b"denied", b"allowed"), *lines[3:]], 3),
        ([*lines[:2], *lines[3:]], 3),
        ([*lines[:2], lines[1], *lines[2:]], 3),
        ([b"{}", *lines], 1),
        ([b"[]", *lines], 1),
    ):
        with pytest.raises(ValueError, match=f"line {number} "):
            verify_chain(odd)


def test_what_does_not_fit_is_counted_in_the_file(tmp_path):
    audit = AuditFile(tmp_path / "a.jsonl", backlog=1)
    with audit._lock:  # the writer cannot count while we hold this, so the queue fills
        while audit._queue.empty():
            audit._queue.put(event(0))
    for _ in range(5_000):
        audit.record(event(1))
    audit.close()
    records = [json.loads(line) for line in written(tmp_path / "a.jsonl")]
    lost = sum(record.get("lost", 0) for record in records) + audit.lost
    assert sum("request_id" in record for record in records) + lost == 5_001
    assert verify_chain(written(tmp_path / "a.jsonl")) == len(records)


def test_a_line_that_a_crash_cut_is_dropped_and_the_chain_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    audit = AuditFile(path)
    audit.record(event(0))
    audit.close()
    with path.open("ab") as file:
        file.write(b'{"at":"20')
    audit = AuditFile(path)
    audit.record(event(1))
    audit.close()
    assert verify_chain(written(path)) == 2


def test_a_file_of_something_else_is_not_continued(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ConfigurationError):
        AuditFile(path)
    with pytest.raises(ConfigurationError):
        AuditFile(tmp_path)
