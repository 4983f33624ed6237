"""The one key that signs: made once, opened everywhere, never replaced in silence."""

from __future__ import annotations

import asyncio

import pytest

from casemate.clock import SystemClock
from casemate.errors import StoredDataUnreadable, Unavailable
from services.auth.key_ring import TokenKeyRing
from services.auth.store.token_keys import TokenKeyStore


def build_ring(shelf, clock, schedule=None):
    keys = TokenKeyStore(pool=shelf.pool, tables=shelf.tables)
    return TokenKeyRing(store=shelf.store, keys=keys, kek=shelf.kek, clock=clock, schedule=schedule)


def _ring(shelf):
    return build_ring(shelf, SystemClock())


async def test_replicas_that_start_together_sign_with_one_key(shelf):
    rings = [_ring(shelf) for _ in range(4)]
    await asyncio.gather(*(ring.prepare() for ring in rings))
    assert len({ring.active().kid for ring in rings}) == 1
    assert await shelf.pool.fetchval("SELECT count(*) FROM token_key") == 1


async def test_a_restart_signs_with_the_same_key(shelf):
    first, second = _ring(shelf), _ring(shelf)
    await first.prepare()
    await second.prepare()
    assert first.active().kid == second.active().kid


async def test_an_active_key_that_sql_changed_is_neither_used_nor_replaced(shelf):
    await _ring(shelf).prepare()
    await shelf.pool.execute("UPDATE token_key SET public_key = sha256('swapped')")
    ring = _ring(shelf)
    with pytest.raises(StoredDataUnreadable):
        await ring.prepare()
    with pytest.raises(Unavailable):
        ring.active()
    assert shelf.alarms
    assert await shelf.pool.fetchval("SELECT count(*) FROM token_key") == 1
