"""The ring of data keys: what empties it, and that no key shows itself."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import io
import logging
import pickle
from datetime import timedelta

import pytest

from casemate.errors import FailedPrecondition, StoredDataUnreadable
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.files import open_bytes, seal_bytes
from casemate.sealing.kek import KekStatus
from casemate.sealing.key_ring import KekWatch, RingLimits
from casemate.sealing.keys import DataKey, WrappedKey
from casemate.sealing.rows import open_batch, seal_batch
from tests.sealing.ring_world import (
    CANARY,
    CONTEXT,
    OTHER,
    ROWS_CONTEXT,
    Build,
    HandClock,
    Provider,
    Stored,
    _attempt,
    build,
    clock,
    forms,
    provider,
    stored,
)

__all__ = ["build", "clock", "provider", "stored"]  # fixtures


@pytest.mark.parametrize(
    "event", [{"version": 2}, {"status": KekStatus.DISABLED}, {"status": KekStatus.PENDING_DELETION}], ids=str
)
async def test_rotation_and_revocation_empty_the_ring(
    event: dict[str, object], build: Build, provider: Provider, stored: Stored
) -> None:
    """At the next look. The twins: nothing happened, and a provider that is merely out of reach."""
    ring = build()
    await ring.key("k", CONTEXT, stored.load)
    watch = KekWatch(kek=provider, rings=(ring,))
    for provider.reachable in (True, False, True):
        assert not await watch.look()
    assert len(ring) == 1
    for name, value in event.items():
        setattr(provider, name, value)
    assert await watch.look()
    assert len(ring) == 0


async def test_key_that_is_disabled_at_the_first_look_empties_the_ring(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """Disabled between start and the first look."""
    ring = build()
    await ring.key("k", CONTEXT, stored.load)
    provider.status = KekStatus.DISABLED
    assert await KekWatch(kek=provider, rings=(ring,)).look()
    with pytest.raises(FailedPrecondition):
        await ring.key("k", CONTEXT, stored.load)


async def test_key_that_is_denied_empties_the_ring_once_and_one_out_of_reach_does_not(
    build: Build, provider: Provider, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    """AccessDenied, or a PIN that is refused: the right to the keys has ended. Given back, keys are held again."""
    ring = build()
    watch = KekWatch(kek=provider, rings=(ring,))
    await watch.look()
    await ring.key("k", CONTEXT, stored.load)
    provider.reachable = False
    assert not await watch.look()
    assert len(ring) == 1
    provider.reachable, provider.denied = True, True
    assert [await watch.look() for _ in range(3)] == [True, False, False]
    assert len(ring) == 0
    assert caplog.text.count("refused to us") == 1
    provider.denied = False
    await watch.look()
    await ring.key("k", CONTEXT, stored.load)
    assert not await watch.look()
    assert len(ring) == 1


async def test_key_that_is_denied_at_the_first_look_empties_the_ring(
    build: Build, provider: Provider, stored: Stored
) -> None:
    """Denied between the start and the first look."""
    ring = build()
    await ring.key("k", CONTEXT, stored.load)
    provider.denied = True
    assert await KekWatch(kek=provider, rings=(ring,)).look()
    assert len(ring) == 0


async def test_running_watch_outlives_a_fault_that_nobody_foresaw(
    build: Build, provider: Provider, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, without its text; then the key is disabled, and the ring is emptied as ever."""
    ring = build()
    await ring.key("k", CONTEXT, stored.load)
    provider.odd = KeyError("KeyMetadata, quoted")
    watch = KekWatch(kek=provider, rings=(ring,), interval=timedelta(milliseconds=5))
    for _ in range(3):
        assert not await watch.look()
    assert len(ring) == 1
    assert caplog.text.count("KeyError") == 1
    assert "quoted" not in caplog.text
    running = asyncio.create_task(watch.run())
    provider.odd, provider.status = None, KekStatus.DISABLED
    async with asyncio.timeout(5):
        while len(ring):
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_running_watch_outlives_a_provider_that_cannot_be_asked(
    build: Build, provider: Provider, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of reach, back, rotated: the ring is emptied without anybody asking."""
    ring = build()
    await ring.key("k", CONTEXT, stored.load)
    provider.reachable = False
    watch = KekWatch(kek=provider, rings=(ring,), interval=timedelta(milliseconds=5))
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(watch.run())
        async with asyncio.timeout(5):
            while "unknown" not in caplog.text:
                await asyncio.sleep(0.001)
            provider.reachable, provider.status = True, KekStatus.DISABLED
            while len(ring):
                await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_event_is_seen_within_five_seconds() -> None:
    """One interval may pass before the look, one in it: the default keeps both below the limit."""
    default = KekWatch.__init__.__kwdefaults__["interval"]
    assert 2 * default < timedelta(seconds=5)


@pytest.mark.parametrize("limit", [{"keys": 0}, {"uses": 0}, {"use_bytes": 0}, {"age": timedelta(0)}], ids=str)
def test_limit_that_is_not_positive_is_refused(limit: dict[str, object]) -> None:
    """The twin is the default."""
    with pytest.raises(ValueError, match="positive"):
        RingLimits(**limit)
    assert RingLimits().keys > 0


async def test_planted_key_shows_up_nowhere(
    build: Build,
    provider: Provider,
    clock: HandClock,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A key with a known text goes through every call, good and bad; then all that was said is searched."""
    caplog.set_level(logging.DEBUG)
    key = DataKey(CANARY)
    stored = Stored(key, await provider.wrap(key, CONTEXT))
    batch = seal_batch(key, ROWS_CONTEXT, [b"one", b"two"], first_ordinal=0)
    ring, said = build(uses=3, wait=timedelta(milliseconds=50)), io.StringIO()
    watch = KekWatch(kek=provider, rings=(ring,))

    async def gone() -> WrappedKey:
        raise StoredDataUnreadable("gone")

    for action in (
        lambda: ring.key("k", CONTEXT, stored.load),
        lambda: ring.key("k", OTHER, stored.load),
        lambda: ring.key("x", CONTEXT, gone),
        lambda: provider.unwrap(dataclasses.replace(stored.wrapped, kek_version=9), CONTEXT),
        lambda: asyncio.to_thread(open_batch, key, ROWS_CONTEXT, dataclasses.replace(batch, rows=batch.rows[::-1])),
        lambda: asyncio.to_thread(open_batch, key, ROWS_CONTEXT, dataclasses.replace(batch, salt=bytes(24))),
        lambda: asyncio.to_thread(open_bytes, key, seal_bytes(key, b"file", context=b"a"), context=b"b"),
        lambda: asyncio.to_thread(AuthorityKey(key).verify, "grants", "1", {}, bytes(32)),
        watch.look,
    ):
        await _attempt(action, said)
    print(ring, repr(ring), f"{ring} {key}", stored.wrapped, ring._entries, ring._flights, file=said)
    logging.getLogger("casemate.test").error("%s %r %s %r", key, key, ring, ring._entries)
    for forbidden in (key, ring):
        for serialize in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError) as error:
                serialize(forbidden)
            print(error.value, file=said)
    for status in (KekStatus.DISABLED, KekStatus.ENABLED):
        provider.status = status
        await _attempt(watch.look, said)
        await _attempt(lambda: ring.key("k", CONTEXT, stored.load), said)
    printed = capfd.readouterr()
    everything = said.getvalue() + caplog.text + printed.out + printed.err
    assert "DataKey(…)" in everything
    for form in forms(CANARY):
        assert form not in everything
        assert form.upper() not in everything
    # The twin: the search does find what is shown on purpose.
    assert any(form in f"{key.reveal()!r}" for form in forms(CANARY))
