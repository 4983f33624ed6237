"""Pauses between calls to a provider that does not answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from casemate.errors import StoredDataUnreadable, Unavailable
from casemate.sealing.breaker import GuardedKek
from casemate.sealing.keys import KeyContext
from casemate.sealing.local import LocalKeyRing
from tests.sealing.test_aws_kms import SetClock
from tests.support.keks import AwsProvider

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)
OTHER = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=2)
DOWN = ("KMSInternalException", 500)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def guarded(aws: AwsProvider, clock: SetClock) -> GuardedKek:
    return GuardedKek(aws.kek, clock=clock, failures=3, pause=timedelta(seconds=5))


async def test_provider_that_does_not_answer_is_left_alone_until_the_pause_ends(
    aws: AwsProvider, guarded: GuardedKek, clock: SetClock
) -> None:
    """Three calls reach it, none during the pause, one after it, and all once it answers."""
    key, wrapped = await guarded.generate_data_key(CONTEXT)
    aws.double.refusal = DOWN
    aws.double.calls.clear()
    for _ in range(6):
        with pytest.raises(Unavailable):
            await guarded.unwrap(wrapped, CONTEXT)
    assert len(aws.double.calls) == 3
    clock.seconds += 5
    for _ in range(3):
        with pytest.raises(Unavailable):
            await guarded.unwrap(wrapped, CONTEXT)
    assert len(aws.double.calls) == 4
    aws.double.refusal = None
    with pytest.raises(Unavailable) as refused:
        await guarded.unwrap(wrapped, CONTEXT)
    assert refused.value.retry_after == timedelta(seconds=5)
    clock.seconds += 5
    assert await guarded.unwrap(wrapped, CONTEXT) == key
    assert await guarded.unwrap(await guarded.rewrap(wrapped, CONTEXT), CONTEXT) == key


async def test_answer_in_between_starts_the_count_anew(aws: AwsProvider, guarded: GuardedKek) -> None:
    """A refusal is an answer: damaged rows of one tenant do not cut off the others."""
    key, wrapped = await guarded.generate_data_key(CONTEXT)
    for _ in range(3):
        aws.double.refusals.extend([DOWN, DOWN])
        for _ in range(2):
            with pytest.raises(Unavailable):
                await guarded.unwrap(wrapped, CONTEXT)
        with pytest.raises(StoredDataUnreadable):
            await guarded.unwrap(wrapped, OTHER)
    assert await guarded.unwrap(wrapped, CONTEXT) == key


async def test_state_asks_during_a_pause_and_its_answer_ends_it(aws: AwsProvider, guarded: GuardedKek) -> None:
    """A health check sees the truth."""
    key, wrapped = await guarded.generate_data_key(CONTEXT)
    aws.double.refusals.extend([DOWN] * 4)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await guarded.unwrap(wrapped, CONTEXT)
    with pytest.raises(Unavailable):
        await guarded.state()
    assert not aws.double.refusals
    await guarded.state()
    assert await guarded.unwrap(wrapped, CONTEXT) == key


async def test_one_call_tries_after_a_pause_even_if_its_caller_gives_up(tmp_path: Path, clock: SetClock) -> None:
    """Neither do many press on a provider that comes back, nor does one that left keep the others out."""
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    key, wrapped = await ring.generate_data_key(CONTEXT)
    answers: list[asyncio.Event | None] = [None]

    class Stalled(LocalKeyRing):
        """A ring that fails, waits or answers as the test says."""

        async def unwrap(self, wrapped, context):
            if answers[0] is None:
                raise Unavailable("down")
            await answers[0].wait()
            return await ring.unwrap(wrapped, context)

    guarded = GuardedKek(Stalled.load(tmp_path / "kek.json"), clock=clock, failures=1, pause=timedelta(seconds=5))
    with pytest.raises(Unavailable, match="down"):
        await guarded.unwrap(wrapped, CONTEXT)
    clock.seconds += 5
    answers[0] = asyncio.Event()
    trying = asyncio.ensure_future(guarded.unwrap(wrapped, CONTEXT))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="not been answering"):
        await guarded.unwrap(wrapped, CONTEXT)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    answers[0].set()
    assert await guarded.unwrap(wrapped, CONTEXT) == key
