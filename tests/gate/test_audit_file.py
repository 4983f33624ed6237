"""The audit file: whole lines, one chain, nothing lost without a count, nothing done that could not be traced."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import example, given, settings
from hypothesis.strategies import dictionaries, integers, lists, text

from casemate.errors import ConfigurationError, Unavailable
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.audit_lines import Head, line_after, verify_chain, verify_file
from casemate.gate.adapters.audit_repeats import MOST_IDS, MOST_OF_ONE, Repeats
from casemate.gate.core.audit import AuditEvent

NUMBERS = count()


def allowed(number: int, **more) -> AuditEvent:
    return AuditEvent(
        at=datetime.now(UTC), request_id=f"request-{number}", method="/a.B/C", decision="allowed", outcome="OK", **more
    )


def denied(number: int = 0, **more) -> AuditEvent:
    fields = {"method": "/a.B/C", "reason": "TOKEN_MISSING", **more}
    return AuditEvent(at=datetime.now(UTC), request_id=f"request-{number}", decision="denied", **fields)


def lines_of(path):
    return path.read_bytes().splitlines()


def records_of(path):
    return [json.loads(line) for line in lines_of(path)]


def write(path, *events):
    audit = AuditFile(path)
    for event in events:
        audit.record(event)
    audit.close()
    return audit


def test_events_are_lines_of_one_chain_across_restarts(tmp_path):
    path = tmp_path / "audit" / "auth.jsonl"
    write(path, *map(allowed, range(3)))
    write(path, *map(allowed, range(3, 6)))
    assert verify_chain(lines_of(path)) == 6
    assert [record["request_id"] for record in records_of(path)] == [f"request-{number}" for number in range(6)]
    assert [record["number"] for record in records_of(path)] == [1, 2, 3, 4, 5, 6]
    assert "tenant" not in records_of(path)[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_name("auth.jsonl.heads").stat().st_mode) == 0o600


@example("\x7f", {})  # which one of the two escapes
@example("\ud800", {"\u2028": "\x00/"})
@settings(max_examples=60, deadline=None)
@given(
    text(max_size=20),
    dictionaries(
        text(max_size=8).filter(lambda name: name not in {"number", "previous", "sha256"}),
        text(max_size=8) | integers(-(2**53), 2**53) | lists(text(max_size=4), max_size=3),
    ),
)
def test_whatever_names_hold_a_line_is_verified_by_whoever_reads_json(name, more):
    """Two encoders write, and one of them verifies: what a stranger sends must not tell them apart."""
    lines, head = [], Head()
    for record in ({"method": name}, {**more, "method": "/a.B/C"}, {"method": "/a.B/C", "spelled": "plainly"}):
        line, head = line_after(head, record)
        lines.append(line)
        assert line.isascii()
        found = json.loads(line)
        assert {key: found[key] for key in record} == record
        body = {key: value for key, value in found.items() if key != "sha256"}
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        assert found["sha256"] == hashlib.sha256(canonical).hexdigest()
    assert verify_chain(lines) == 3


def test_a_changed_removed_or_inserted_line_breaks_the_chain_there(tmp_path):
    write(tmp_path / "a.jsonl", *map(allowed, range(5)))
    lines = lines_of(tmp_path / "a.jsonl")
    assert verify_chain(lines) == 5
    for odd, number in (
        ([*lines[:2], lines[2].replace(b"allowed", b"denied"), *lines[3:]], 3),
        ([*lines[:2], *lines[3:]], 3),
        ([*lines[:2], lines[1], *lines[2:]], 3),
        ([b"{}", *lines], 1),
        ([b"[]", *lines], 1),
    ):
        with pytest.raises(ValueError, match=f"line {number} "):
            verify_chain(odd)


def test_a_cut_off_end_is_found_by_the_checkpoint_and_by_a_head_kept_elsewhere(tmp_path):
    path = tmp_path / "a.jsonl"
    head = write(path, *map(allowed, range(5))).head
    assert verify_file(path).checkpoints == 1
    assert verify_file(path, known=head).head == head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    with pytest.raises(ValueError, match="lines 4 to 5 were cut off"):
        verify_file(path)
    path.with_name("a.jsonl.heads").unlink()  # whoever cuts the file can do this too
    assert verify_file(path).head.number == 3
    with pytest.raises(ValueError, match="lines 4 to 5 were cut off"):
        verify_file(path, known=head)


def test_a_file_written_anew_after_a_checkpoint_is_not_the_one_that_it_names(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(path, *map(allowed, range(3)))
    write(other, *map(allowed, range(10, 13)))
    path.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match="line 3 is not the one"):
        verify_file(path)
    with pytest.raises(ValueError, match="line 3 is not the head"):
        verify_file(path, known=Head(3, "0" * 64))
    assert verify_file(other).head.number == 3


def test_denials_that_repeat_are_one_line_with_their_count_and_ids(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, *(denied(number) for number in range(100)), denied(100, reason="TOKEN_EXPIRED"))
    first, other, repeats = records_of(path)
    assert (first["request_id"], other["reason"]) == ("request-0", "TOKEN_EXPIRED")
    assert (repeats["count"], repeats["reason"], len(repeats["request_ids"])) == (99, "TOKEN_MISSING", MOST_IDS)
    assert repeats["request_ids"][0] == "request-1"
    assert verify_file(path).lost == 0


def test_denials_of_different_callers_or_resources_are_told_apart_and_strangers_names_are_not():
    repeats = Repeats()
    known = [{"tenant": "acme", "client_id": "one"}, {"tenant": "acme", "client_id": "two"}, {"tenant": "globex"}]
    known += [{**known[0], "resource": "dataset/a"}, {**known[0], "method": "/a.B/D"}]
    assert all(repeats.take(denied(**each), monotonic=0.0) for each in known)
    # A stranger may invent a name a call.
    assert repeats.take(denied(method="/x/0"), monotonic=0.0)
    assert not any(repeats.take(denied(method=f"/x/{number}"), monotonic=0.0) for number in range(1, 5_000))
    told = repeats.due(monotonic=1.0)
    assert [line["count"] for line in told] == [4_999]
    assert repeats.take(denied(method="/x/again"), monotonic=1.0)


def test_one_caller_that_names_a_thousand_resources_or_methods_is_some_lines_and_each_is_counted():
    who = {"tenant": "acme", "client_id": "acme-trainer", "spiffe_id": "spiffe://x/t/acme/trainer"}
    for odd in ({"resource": "dataset/{}"}, {"method": "/a.B/{}"}):
        repeats, lines = Repeats(), []
        for number in range(1_000):
            chosen = {name: value.format(number) for name, value in odd.items()}
            lines += repeats.take(denied(number, reason="GRANT_MISSING", **who, **chosen), monotonic=0.0)
        lines += repeats.take(denied(1, reason="GRANT_MISSING", **{**who, "client_id": "another"}), monotonic=0.0)
        assert len(lines) == MOST_OF_ONE + 2  # the first of all others, and the other caller's
        lines += repeats.due(monotonic=1.0)
        assert sum(line.get("count", 1) for line in lines) == 1_001
        assert len(lines) == MOST_OF_ONE + 3
        assert (len(repeats), repeats._of_one) == (0, {})


def test_kinds_that_are_remembered_are_bounded_and_none_is_lost():
    repeats, told = Repeats(), []
    for number in range(5_000):
        for _ in range(2):
            told += repeats.take(denied(tenant=f"tenant-{number}"), monotonic=0.0)
    assert len(repeats._kinds) <= 1024
    told += repeats.due(monotonic=None)
    assert sum(line.get("count", 1) for line in told) == 10_000


def test_what_does_not_fit_is_counted_in_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    audit = AuditFile(path, backlog=1)
    with audit._lock:  # the writer cannot count while we hold this, so the room fills
        for number in range(5_000):
            if len(audit._denials) < 1:
                audit.record(denied(number, tenant=f"tenant-{number}"))
            else:
                break
        full = threading.Thread(target=audit.record, args=(denied(tenant="one too many"),))
        full.start()
    full.join(10)
    audit.close()
    told = sum(record.get("count", 1) for record in records_of(path) if "request_id" in record)
    assert told + verify_file(path).lost + audit.lost == number + 1


def test_a_flood_of_denials_takes_no_room_from_calls_that_must_be_traced(tmp_path):
    path = tmp_path / "a.jsonl"
    audit = AuditFile(path, backlog=10)
    for number in range(5_000):
        audit.record(denied(number, tenant=f"tenant-{number}"))
        if number % 100 == 0:
            audit.require_writable()
            audit.record(allowed(number))
    audit.close()
    assert [record["request_id"] for record in records_of(path) if record.get("decision") == "allowed"] == [
        f"request-{number}" for number in range(0, 5_000, 100)
    ]


def test_calls_that_must_be_traced_are_refused_when_their_room_would_not_do(tmp_path):
    audit = AuditFile(tmp_path / "a.jsonl", reserved=1_024)
    audit.require_writable()
    with audit._lock:  # holds the writer
        audit.record(allowed(0))
        with pytest.raises(Unavailable):
            audit.require_writable()
    audit.close()
    audit.require_writable()
    assert len(records_of(tmp_path / "a.jsonl")) == 1


FULL_DISK = """
import resource, signal, sys, time
from datetime import UTC, datetime
from pathlib import Path
from casemate.errors import Unavailable
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.core.audit import AuditEvent

def event(decision, number):
    return AuditEvent(at=datetime.now(UTC), request_id=f"{decision}-{number}", method="/a.B/C", decision=decision)

def until(wanted):
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        try:
            audit.require_writable()
        except Unavailable:
            if wanted == "refused":
                return
        else:
            if wanted == "taken":
                return
        time.sleep(0.01)
    sys.exit(f"never {wanted}")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
audit = AuditFile(Path(sys.argv[1]))
until("taken")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
audit.record(event("allowed", 0))
audit.record(event("denied", 0))
until("refused")
audit.require_writable(may_wait=True)  # it only takes rights away
audit.record(event("allowed", "revoked"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
until("taken")
audit.record(event("allowed", 1))
audit.close()
"""


def test_a_full_disk_refuses_calls_that_must_be_traced_loses_none_and_recovers(tmp_path):
    path = tmp_path / "a.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    ids = [record["request_id"] for record in records_of(path) if "request_id" in record]
    assert ids == ["allowed-0", "allowed-revoked", "allowed-1"]
    # Should the process end meanwhile, the log has what was kept.
    assert all(name in ended.stderr for name in ('"request_id": "allowed-0"', '"request_id": "allowed-revoked"'))
    assert verify_file(path).lost == 1  # the denial: counted, in the file itself


def test_what_may_wait_is_refused_when_there_is_no_room_to_keep_it(tmp_path):
    audit = AuditFile(tmp_path / "a.jsonl", reserved=8)
    for may_wait in (True, False):
        with pytest.raises(Unavailable):
            audit.require_writable(may_wait=may_wait)
    audit.close()
    audit = AuditFile(tmp_path / "b.jsonl")
    audit.require_writable(may_wait=True)
    audit.close()


def test_the_head_is_noted_at_intervals_and_logged(tmp_path, caplog):
    caplog.set_level("INFO", logger="casemate.gate.adapters.audit_file")
    path = tmp_path / "a.jsonl"
    audit = AuditFile(path, checkpoint_every=timedelta(0))
    for number in range(3):
        audit.record(allowed(number))
        while audit.head.number <= number:
            time.sleep(0.001)
    audit.close()
    heads = [json.loads(line)["number"] for line in lines_of(path.with_name("a.jsonl.heads"))]
    assert heads == [1, 2, 3]
    assert records_of(path)[2]["sha256"] in caplog.text
    assert verify_file(path).checkpoints == 3


def test_a_line_that_a_crash_cut_is_dropped_and_the_chain_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, allowed(0))
    with path.open("ab") as file:
        file.write(b'{"at":"20')
    write(path, allowed(1))
    assert verify_chain(lines_of(path)) == 2
    assert verify_file(path).checkpoints == 2


def test_a_file_of_something_else_is_not_continued(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ConfigurationError):
        AuditFile(path)
    with pytest.raises(ConfigurationError):
        AuditFile(tmp_path)
    path.write_text("")
    AuditFile(path).close()


def test_names_that_a_stranger_chose_do_not_make_lines_long(tmp_path):
    write(tmp_path / "a.jsonl", denied(method="/" + "x" * 8_000))
    assert len(lines_of(tmp_path / "a.jsonl")[0]) < 1_000


def test_a_line_that_parsers_read_alike_and_is_spelled_otherwise_is_found(tmp_path):
    """Another reader takes the first of two members, or the other way round: the bytes have to be the ones written."""
    write(tmp_path / "a.jsonl", *map(allowed, range(3)))
    lines = lines_of(tmp_path / "a.jsonl")
    assert verify_chain([line + b"\n" for line in lines]) == 3
    for odd in (
        lines[1].replace(b'{"at"', b'{"outcome":"DENIED","at"'),
        lines[1].replace(b'"decision":"allowed"', b'"decision": "allowed"'),
        lines[1].replace(b"allowed", b"\\u0061llowed"),
        lines[1].replace(b',"sha256"', b' ,"sha256"'),
        lines[1] + b" ",
        b'{"sha256":"' + json.loads(lines[1])["sha256"].encode() + b'",' + lines[1][1:],
    ):
        assert odd != lines[1]
        with pytest.raises(ValueError, match="line 2 "):
            verify_chain([lines[0], odd, lines[2]])
