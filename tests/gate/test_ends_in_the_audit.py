"""What the audit says of calls that were let in and did not end well: what may have been done is never a repeat."""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress

import grpc
import pytest

from casemate.errors import Exhausted, PermissionDenied
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.core.records import RevocationKind
from casemate.transport.registry import RegisteredService
from tests.gate.adapter_world import kind, service_leaf, trainer
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import ECHO, World, auth_context

__all__ = ["kind", "service_leaf", "trainer"]  # fixtures

RAW = b"as it came"
SHED = 2_000


class Taking:
    """Handlers of a stream that end as they are told to: before the first message, or after it."""

    def __init__(self, error=None, *, after=1) -> None:
        self.error, self.after = error, after
        self.took = threading.Event()

    def _end(self, taken):
        if taken == self.after and self.error is not None:
            raise self.error

    def sync(self, raws, _context):
        self._end(0)
        for taken, _ in enumerate(raws, start=1):
            self.took.set()
            self._end(taken)
        return RAW

    async def aio(self, raws, _context):
        self._end(0)
        taken = 0
        async for _ in raws:
            taken += 1
            self.took.set()
            self._end(taken)
        return RAW

    def service(self, kind):
        handler = grpc.stream_unary_rpc_method_handler(getattr(self, kind))
        return RegisteredService("test.Echo", {"Open": handler})


def told(world):
    """Decision and outcome or reason of each event; the last ones may still be on their way."""
    for _ in range(int(LIMIT_S * 100)):
        if world.gate._quota.running == 0 and world.audit.events:
            break
        threading.Event().wait(0.01)
    return [(event.decision, event.outcome or event.reason) for event in world.audit.events]


@pytest.mark.parametrize(
    "ending",
    [
        (Exhausted(), 1, [("allowed", "RESOURCE_EXHAUSTED")]),
        (PermissionDenied(), 1, [("allowed", "PERMISSION_DENIED")]),
        (Exhausted(), 0, [("denied", "RESOURCE_EXHAUSTED")]),
        (None, 1, [("allowed", "OK")]),
    ],
)
def test_a_stream_that_was_begun_is_told_by_its_end_and_one_that_was_not_as_a_refusal(
    kind, service_leaf, trainer, ending
):
    error, after, expected = ending
    world, taking = World(), Taking(error, after=after)
    with (
        serve(kind, world, service_leaf, services=[taking.service(kind)]) as served,
        served.channel(trainer) as channel,
        suppress(grpc.RpcError),
    ):
        channel.stream_unary("/test.Echo/Open")(
            iter([RAW, RAW]), metadata=bearer(world.token(trainer)), timeout=LIMIT_S
        )
    assert told(world) == expected


@pytest.mark.parametrize("revoked", [True, False])
def test_a_stream_whose_right_ended_on_the_way_is_told_twice_what_ended_it_and_that_it_had_begun(
    kind, service_leaf, trainer, revoked
):
    world, taking, sent = World(), Taking(), queue.SimpleQueue()
    with (
        serve(kind, world, service_leaf, services=[taking.service(kind)]) as served,
        served.channel(trainer) as channel,
    ):
        call = channel.stream_unary("/test.Echo/Open").future(
            iter(sent.get, None), metadata=bearer(world.token(trainer, jti="it")), timeout=LIMIT_S
        )
        sent.put(RAW)
        assert taking.took.wait(LIMIT_S)
        world.revoke(RevocationKind.TOKEN, "it" if revoked else "another")
        if revoked:
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        sent.put(None)
        assert call.code().name == ("UNAUTHENTICATED" if revoked else "OK")
        ended = [("denied", "TOKEN_REVOKED"), ("allowed", "UNAUTHENTICATED")]
        assert told(world) == (ended if revoked else [("allowed", "OK")])


def test_an_overload_is_a_few_lines_with_a_count_and_takes_no_room_from_what_must_be_traced(trainer, tmp_path):
    """Calls that a full queue turns away, thousands of them: each is counted, and none is a line of its own."""
    world = World()
    world.audit = AuditFile(tmp_path / "audit.jsonl", backlog=2 * SHED)
    gate = world.build_gate(world.cache)
    token = bearer(world.token(trainer))
    for number in range(SHED):
        admission = gate.at_headers(ECHO + "Open", token, request_id=f"{number:x}")
        gate.at_message(admission, auth_context(trainer))
        gate.finish(admission, "RESOURCE_EXHAUSTED")
    world.audit.require_writable()
    assert len(world.audit._allowed) == 0
    world.audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    assert {line["reason"] for line in lines} == {"RESOURCE_EXHAUSTED"}
    assert sum(line.get("count", 1) for line in lines) == SHED
    assert len(lines) < SHED / 20
