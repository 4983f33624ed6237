"""Keys rotate under load: no call fails, on the service itself and on one that follows its feed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.clock import SystemClock
from services.auth.key_schedule import KeySchedule
from tests.services.auth.test_key_ring import build_ring
from tests.services.auth.world import open_shelf

LIST_GRANTS = admin.ListGrantsRequest(tenant="casemate")
QUICK = KeySchedule(
    lifetime=timedelta(seconds=6), known_before=timedelta(seconds=1), verified_after=timedelta(seconds=3)
)


async def test_keys_rotate_under_load_without_one_failed_call(world, tmp_path):
    operator = world.operator()
    kids, calls = set(), 0
    done = asyncio.Event()

    async def load():
        nonlocal calls
        while not done.is_set():
            issued = await operator.token("auth")
            token = world.verified(issued.access_token, "auth")
            await operator.administer("ListGrants", LIST_GRANTS, token=issued.access_token)
            kids.add(token.kid)
            calls += 1

    async with open_shelf(world.settings.database, tmp_path) as shelf:
        # Another replica, which turns the keys that this one signs with.
        ring = build_ring(shelf, SystemClock(), QUICK)
        await ring.prepare()
        loading = [asyncio.create_task(load()) for _ in range(4)]
        try:
            async with asyncio.timeout(60):
                while len(kids) < 3:
                    await ring.turn()
                    await asyncio.sleep(0.05)
        finally:
            done.set()
        await asyncio.gather(*loading)
    assert calls > 3
