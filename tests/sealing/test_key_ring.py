"""The ring of data keys: one unwrapping for many uses, and none after its right has ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from casemate.errors import FailedPrecondition, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KekStatus
from casemate.sealing.keys import DataKey, WrappedKey
from tests.sealing.ring_world import (
    CONTEXT,
    OTHER,
    Build,
    HandClock,
    Provider,
    Stored,
    build,
    clock,
    provider,
    stored,
)

__all__ = ["build", "clock", "provider", "stored"]  # fixtures


async def test_second_use_neither_reads_nor_unwraps(build: Build, provider: Provider, stored: Stored) -> None:
    """The point of the ring."""
    ring = build()
    for _ in range(3):
        assert await ring.key("k", CONTEXT, stored.load) == stored.key
    assert (provider.unwrapped, stored.reads, len(ring)) == (1, 1, 1)


async def test_many_at_once_unwrap_once(build: Build, provider: Provider, stored: Stored) -> None:
    """Single flight: a hundred tasks meet one miss."""
    ring = build()
    provider.open.clear()
    waiting = [asyncio.create_task(ring.key("k", CONTEXT, stored.load)) for _ in range(100)]
    await provider.asked.wait()
    provider.open.set()
    assert {key.reveal() for key in await asyncio.gather(*waiting)} == {stored.key.reveal()}
    assert provider.unwrapped == 1


async def test_one_who_stops_waiting_does_not_stop_the_others(build: Build, provider: Provider, stored: Stored) -> None:
    """The first to ask is cancelled; the twin is its neighbour."""
    ring = build()
    provider.open.clear()
    first, second = (asyncio.create_task(ring.key("k", CONTEXT, stored.load)) for _ in range(2))
    await provider.asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    provider.open.set()
    assert await second == stored.key
    assert provider.unwrapped == 1


async def test_failure_is_told_to_all_and_not_kept(build: Build, provider: Provider, stored: Stored) -> None:
    """Disabled: every waiter is refused. Enabled again: the next one is served."""
    ring = build()
    provider.open.clear()
    provider.status = KekStatus.DISABLED
    waiting = [asyncio.create_task(ring.key("k", CONTEXT, stored.load)) for _ in range(5)]
    await provider.asked.wait()
    provider.open.set()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, FailedPrecondition)
    assert len(ring) == 0
    provider.status = KekStatus.ENABLED
    assert await ring.key("k", CONTEXT, stored.load) == stored.key


async def test_another_context_is_refused_even_while_the_key_is_held(build: Build, stored: Stored) -> None:
    """A hit never skips the binding; the twin is the key's own context."""
    ring = build()
    assert await ring.key("k", CONTEXT, stored.load) == stored.key
    with pytest.raises(StoredDataUnreadable):
        await ring.key("k", OTHER, stored.load)
    assert await ring.key("k", CONTEXT, stored.load) == stored.key


async def test_key_past_its_age_is_unwrapped_again(
    build: Build, provider: Provider, stored: Stored, clock: HandClock
) -> None:
    """Use does not extend it; the twin is one second before."""
    ring = build(age=timedelta(seconds=60))
    await ring.key("k", CONTEXT, stored.load)
    clock.seconds += 59
    await ring.key("k", CONTEXT, stored.load)
    assert provider.unwrapped == 1
    clock.seconds += 1
    await ring.key("k", CONTEXT, stored.load)
    assert provider.unwrapped == 2


async def test_age_counts_from_before_the_unwrapping(
    build: Build, provider: Provider, stored: Stored, clock: HandClock
) -> None:
    """A provider slower than a key may age leaves nothing to give out."""
    ring = build(age=timedelta(seconds=60))

    async def slow() -> WrappedKey:
        clock.seconds += 61
        return stored.wrapped

    with pytest.raises(Unavailable):
        await ring.key("k", CONTEXT, slow)
    assert await ring.key("k", CONTEXT, stored.load) == stored.key


@pytest.mark.parametrize(("limits", "unwrapped"), [({"uses": 2}, 3), ({"use_bytes": 100}, 3), ({}, 1)], ids=str)
async def test_key_that_is_used_up_is_unwrapped_again(
    limits: dict[str, int], unwrapped: int, build: Build, provider: Provider, stored: Stored
) -> None:
    """Six uses of fifty bytes: two at a time, a hundred bytes at a time, and without limit."""
    ring = build(**limits)
    for _ in range(6):
        assert await ring.key("k", CONTEXT, stored.load, use_bytes=50) == stored.key
    assert provider.unwrapped == unwrapped


async def test_use_limit_holds_for_those_who_waited_together(build: Build, provider: Provider, stored: Stored) -> None:
    """Seven waiters, two uses a key: four unwrappings."""
    ring = build(uses=2)
    provider.open.clear()
    waiting = [asyncio.create_task(ring.key("k", CONTEXT, stored.load)) for _ in range(7)]
    await provider.asked.wait()
    provider.open.set()
    assert {key.reveal() for key in await asyncio.gather(*waiting)} == {stored.key.reveal()}
    assert provider.unwrapped == 4


async def test_longest_unused_key_leaves_first(build: Build, provider: Provider, stored: Stored) -> None:
    """Two places, three keys."""
    ring = build(keys=2)
    for identifier in ("a", "b", "a", "c"):
        await ring.key(identifier, CONTEXT, stored.load)
    assert (len(ring), provider.unwrapped) == (2, 3)
    await ring.key("a", CONTEXT, stored.load)
    assert provider.unwrapped == 3
    await ring.key("b", CONTEXT, stored.load)
    assert (len(ring), provider.unwrapped) == (2, 4)


async def test_shredded_key_is_gone_at_once_and_its_neighbour_stays(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """A drop of one version."""
    ring = build()
    neighbour = Stored(*await provider.generate_data_key(OTHER))
    await ring.key("k", CONTEXT, stored.load)
    await ring.key("n", OTHER, neighbour.load)

    async def shredded() -> WrappedKey:
        raise StoredDataUnreadable("gone")

    assert ring.drop(lambda _identifier, context: context.version == 1) == 1
    with pytest.raises(StoredDataUnreadable):
        await ring.key("k", CONTEXT, shredded)
    assert await ring.key("n", OTHER, neighbour.load) == neighbour.key
    assert neighbour.reads == 1


async def test_key_whose_unwrapping_began_before_a_drop_is_not_given_out_after_it(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """The race that would keep a revoked key: read, dropped, then unwrapped."""
    ring = build()
    provider.open.clear()
    waiting = asyncio.create_task(ring.key("k", CONTEXT, stored.load))
    await provider.asked.wait()
    assert ring.drop() == 0
    provider.open.set()
    assert await waiting == stored.key
    assert (stored.reads, provider.unwrapped) == (2, 2)


async def test_drops_of_another_tenants_keys_disturb_no_flight(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """One who shreds without end keeps nobody else from reading; a drop of this very key does count."""
    ring = build()

    async def load() -> WrappedKey:
        ring.drop(lambda _identifier, context: context == OTHER)
        return await stored.load()

    assert await ring.key("k", CONTEXT, load) == stored.key
    assert (stored.reads, provider.unwrapped, len(ring)) == (1, 1, 1)
    provider.open.clear()
    provider.asked.clear()
    waiting = asyncio.create_task(ring.key("n", CONTEXT, stored.load))
    await provider.asked.wait()
    ring.drop(lambda identifier, _context: identifier == "n")
    provider.open.set()
    assert await waiting == stored.key
    assert stored.reads == 3


async def test_drop_between_the_unwrapping_and_the_one_who_waits_for_it_counts(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """The key is in the ring already; who asked for it has not run yet."""
    ring = build()
    provider.open.clear()
    waiting = asyncio.create_task(ring.key("k", CONTEXT, stored.load))
    await provider.asked.wait()
    provider.open.set()
    async with asyncio.timeout(5):
        while not len(ring):
            await asyncio.sleep(0)
    assert not waiting.done()
    assert ring.drop() == 1
    assert await waiting == stored.key
    assert stored.reads == 2


async def test_those_who_ask_between_the_end_of_a_flight_and_its_landing_do_not_spin(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """They woke by the same event as the flight: one use a key, four who ask, four unwrappings."""
    ring = build(uses=1)
    provider.open.clear()

    async def late() -> DataKey:
        await provider.open.wait()
        return await ring.key("k", CONTEXT, stored.load)

    first = asyncio.create_task(ring.key("k", CONTEXT, stored.load))
    await provider.asked.wait()
    others = [asyncio.create_task(late()) for _ in range(3)]
    await asyncio.sleep(0)
    provider.open.set()
    assert {key.reveal() for key in await asyncio.gather(first, *others)} == {stored.key.reveal()}
    assert provider.unwrapped == 4


async def test_drops_without_end_refuse(build: Build, stored: Stored) -> None:
    """Three times, then UNAVAILABLE; the twin is the next call."""
    ring = build()

    async def load() -> WrappedKey:
        ring.drop()
        return stored.wrapped

    with pytest.raises(Unavailable):
        await ring.key("k", CONTEXT, load)
    assert await ring.key("k", CONTEXT, stored.load) == stored.key


async def test_provider_that_hangs_is_unavailable(build: Build, provider: Provider, stored: Stored) -> None:
    """And serves once it answers."""
    ring = build(wait=timedelta(milliseconds=20))
    provider.open.clear()
    with pytest.raises(Unavailable):
        await ring.key("k", CONTEXT, stored.load)
    provider.open.set()
    assert await ring.key("k", CONTEXT, stored.load) == stored.key
