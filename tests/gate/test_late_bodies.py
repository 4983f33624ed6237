"""First messages on `grpc.aio`: one that does not come ends its call, and no other."""

from __future__ import annotations

import asyncio

import pytest

from casemate.errors import DeadlineExceeded
from casemate.gate.adapters.late_bodies import LateBodies


async def never():
    await asyncio.Event().wait()
    yield b""


async def at_once():
    yield b"x"


async def nothing():
    for _ in ():
        yield b""


async def test_what_does_not_come_is_ended_and_leaves_nothing_behind():
    bodies = LateBodies(within_s=0.02)
    late = asyncio.create_task(bodies.first(never()))
    assert await bodies.first(at_once()) == b"x"
    with pytest.raises(DeadlineExceeded):
        await late
    assert late.cancelling() == 0  # it can go on, and send its status
    with pytest.raises(StopAsyncIteration):
        await bodies.first(nothing())
    assert (bodies._waiting, bodies._late) == ({}, set())
    while bodies._timer is not None:  # the last look finds nobody, and is the last
        await asyncio.sleep(0.005)


async def test_a_call_that_ends_for_another_reason_is_not_told_of_its_body():
    bodies = LateBodies(within_s=60)
    leaving = asyncio.create_task(bodies.first(never()))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    both = asyncio.create_task(bodies.first(never()))
    await asyncio.sleep(0)
    bodies._waiting[both] = 0.0
    bodies._look()
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    assert (bodies._waiting, bodies._late) == ({}, set())
    if bodies._timer is not None:
        bodies._timer.cancel()
