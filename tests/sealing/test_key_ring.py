"""The ring of data keys: one unwrapping for many uses, and none after its right has ended."""

from __future__ import annotations

import asyncio
import base64
import copy
import dataclasses
import io
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casemate.errors import FailedPrecondition, Reason, StoredDataUnreadable, Unavailable
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.files import open_bytes, seal_bytes
from casemate.sealing.kek import KekState, KekStatus
from casemate.sealing.key_ring import DataKeyRing, KekWatch, RingLimits
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import BatchContext, open_batch, seal_batch

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)
OTHER = dataclasses.replace(CONTEXT, version=2)


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


class Provider:
    """A real local ring behind a gate: it can be held, made to refuse, and counts what it unwraps."""

    def __init__(self, path: Path) -> None:
        self.local = LocalKeyRing.create(path)
        self.unwrapped = 0
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.status = KekStatus.ENABLED
        self.version = 1
        self.reachable = True

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        return await self.local.generate_data_key(context)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        return await self.local.wrap(key, context)

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        return await self.local.rewrap(wrapped, context)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        self.unwrapped += 1
        self.asked.set()
        await self.open.wait()
        if self.status is not KekStatus.ENABLED:
            raise FailedPrecondition("disabled", reason=Reason.KEY_NOT_ACTIVE)
        return await self.local.unwrap(wrapped, context)

    async def state(self) -> KekState:
        if not self.reachable:
            raise Unavailable("no route")
        return KekState(kek_id="local", current_version=self.version, status=self.status)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path / "kek.json")


class Stored:
    """One wrapped key and how it is read."""

    def __init__(self, key: DataKey, wrapped: WrappedKey) -> None:
        self.key, self.wrapped = key, wrapped
        self.reads = 0

    async def load(self) -> WrappedKey:
        self.reads += 1
        return self.wrapped


@pytest.fixture
async def stored(provider: Provider) -> Stored:
    return Stored(*await provider.generate_data_key(CONTEXT))


Build = Callable[..., DataKeyRing]


@pytest.fixture
def build(provider: Provider, clock: HandClock) -> Build:
    return lambda **limits: DataKeyRing(kek=provider, clock=clock, limits=RingLimits(**limits))


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


ROWS_CONTEXT = BatchContext(tenant="acme", dataset="digits", version=1, batch=0, schema_sha256=bytes(32))
CANARY = b"canary-canary-canary-canary-0001"


def forms(canary: bytes) -> list[str]:
    """Every spelling in which a key might turn up."""
    return [
        canary.decode(),
        repr(canary),
        canary.hex(),
        canary.hex(" "),
        base64.b64encode(canary).decode().rstrip("="),
        base64.urlsafe_b64encode(canary).decode().rstrip("="),
        str(list(canary)),
        str(int.from_bytes(canary)),
    ]


async def _attempt(action: Callable[[], Awaitable[object]], said: io.StringIO) -> None:
    """Writes down what a failure says, as `%r`, as `%s` and as a traceback."""
    try:
        print(repr(await action()), file=said)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is searched
        print(repr(error), str(error), vars(error), file=said)
        said.write("".join(traceback.format_exception(error)))


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
