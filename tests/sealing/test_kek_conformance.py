"""One suite for every key-encryption key: local, AWS KMS, PKCS#11. None of them has tests of this kind of its own.

What a provider cannot do to a key is listed in its `impossible`, with the reason,
and its `state()` must say the same; nothing is left out in silence.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import traceback
from collections.abc import Awaitable

import pytest

from casemate.errors import FailedPrecondition, Reason, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KekState, KekStatus, KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from tests.support.keks import Fault, LocalProvider, Provider

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)

STATUSES = {
    Fault.DISABLED: KekStatus.DISABLED,
    Fault.PENDING_DELETION: KekStatus.PENDING_DELETION,
    Fault.DESTROYED: KekStatus.DESTROYED,
}
REFUSED = {*STATUSES, Fault.DENIED}


async def outcomes(kek: KeyEncryptionKey, key: DataKey, wrapped: WrappedKey) -> list[object]:
    """What each of the four calls returns or raises; all at once, since a slow provider is slow for each."""
    calls: list[Awaitable[object]] = [
        kek.generate_data_key(CONTEXT),
        kek.wrap(key, CONTEXT),
        kek.unwrap(wrapped, CONTEXT),
        kek.rewrap(wrapped, CONTEXT),
    ]
    return await asyncio.gather(*calls, return_exceptions=True)


def require_no_key_in(error: BaseException, key: DataKey) -> None:
    """Neither the error's text nor that of any error behind it quotes the key."""
    text = "".join(traceback.format_exception(error))
    for spelling in (key.reveal().hex(), base64.b64encode(key.reveal()).decode(), repr(key.reveal())):
        assert spelling not in text


async def test_generated_key_unwraps_to_itself_through_stored_bytes(provider: Provider) -> None:
    """A new key each time, and never in the clear beside its wrap."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    other, _ = await provider.kek.generate_data_key(CONTEXT)
    assert key != other
    assert key.reveal() not in wrapped.to_bytes()
    assert wrapped.context_sha256 == CONTEXT.sha256()
    assert await provider.kek.unwrap(WrappedKey.parse(wrapped.to_bytes()), CONTEXT) == key


async def test_same_key_wrapped_twice_has_two_spellings(provider: Provider) -> None:
    """Equal wraps would tell that two keys are one; and a nonce would have been used twice."""
    key = DataKey.generate()
    one, other = await provider.kek.wrap(key, CONTEXT), await provider.kek.wrap(key, CONTEXT)
    assert one.ciphertext != other.ciphertext
    assert await provider.kek.unwrap(one, CONTEXT) == await provider.kek.unwrap(other, CONTEXT) == key


@pytest.mark.parametrize(
    "changes",
    [{"purpose": "model-file"}, {"tenant": "globex"}, {"tenant": ""}, {"name": "digit"}, {"version": 2}],
    ids=str,
)
async def test_another_context_opens_nothing(provider: Provider, changes: dict[str, object]) -> None:
    """Nor with the stored digest exchanged for the other context's: the provider itself checks."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    other = dataclasses.replace(CONTEXT, **changes)
    forged = dataclasses.replace(wrapped, context_sha256=other.sha256())
    for call in (provider.kek.unwrap, provider.kek.rewrap):
        with pytest.raises(StoredDataUnreadable, match="another context"):
            await call(wrapped, other)
        with pytest.raises(StoredDataUnreadable):
            await call(forged, other)
    assert await provider.kek.unwrap(wrapped, CONTEXT) == key


async def test_unusual_names_are_bound_as_they_are(provider: Provider) -> None:
    """Empty, long, and of other scripts."""
    for context in (
        KeyContext(purpose="log", tenant="", name="", version=0),
        KeyContext(purpose="p", tenant="t" * 200, name="n" * 200, version=2**64 - 1),
        KeyContext(purpose="p", tenant="Straße", name="数据/\"'\\ \u202e", version=1),
    ):
        key, wrapped = await provider.kek.generate_data_key(context)
        assert await provider.kek.unwrap(wrapped, context) == key


async def test_another_key_opens_nothing(provider: Provider) -> None:
    """Nor with its own name put on the wrap."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    other = await provider.other()
    forged = dataclasses.replace(wrapped, kek_id=(await other.state()).kek_id)
    for call in (other.unwrap, other.rewrap):
        for unfit in (wrapped, forged):
            with pytest.raises(StoredDataUnreadable):
                await call(unfit, CONTEXT)
    assert await provider.kek.unwrap(wrapped, CONTEXT) == key


async def test_key_of_the_same_name_with_other_content_opens_nothing(provider: Provider) -> None:
    """A ring or token made anew under the old name; a KMS that hands out another key's plaintext."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    assert await provider.kek.unwrap(wrapped, CONTEXT) == key
    impostor = await provider.impostor()
    with pytest.raises(StoredDataUnreadable) as refused:
        await impostor.unwrap(wrapped, CONTEXT)
    require_no_key_in(refused.value, key)


async def test_each_flipped_byte_of_the_wrap_is_refused(provider: Provider) -> None:
    """Of the stored bytes as a whole: format, name, version, digest and what the provider returned."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    stored = wrapped.to_bytes()
    for place in range(len(stored)):
        changed = stored[:place] + bytes([stored[place] ^ 1 << place % 8]) + stored[place + 1 :]
        with pytest.raises(StoredDataUnreadable):
            await provider.kek.unwrap(WrappedKey.parse(changed), CONTEXT)
    assert await provider.kek.unwrap(WrappedKey.parse(stored), CONTEXT) == key


async def test_each_truncation_and_extension_of_the_ciphertext_is_refused(provider: Provider) -> None:
    """Down to nothing at all, with the lengths around it put right."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    ciphertext = wrapped.ciphertext
    shortened = [ciphertext[:length] for length in range(len(ciphertext))]
    for changed in [*shortened, ciphertext + b"\0", b"\0" + ciphertext, ciphertext * 2, bytes(100_000)]:
        with pytest.raises(StoredDataUnreadable):
            await provider.kek.unwrap(dataclasses.replace(wrapped, ciphertext=changed), CONTEXT)
    assert await provider.kek.unwrap(wrapped, CONTEXT) == key


async def test_rotation_leaves_old_wraps_readable_and_rewraps_them(provider: Provider) -> None:
    """The data key stays the same, so nothing that it seals is touched."""
    key, old = await provider.kek.generate_data_key(CONTEXT)
    kek = await provider.rotate()
    state = await kek.state()
    assert (old.kek_version, state.current_version) == (1, 2)
    assert await kek.unwrap(old, CONTEXT) == key
    new = await kek.rewrap(old, CONTEXT)
    assert (new.kek_id, new.kek_version) == (old.kek_id, 2)
    assert await kek.unwrap(new, CONTEXT) == key
    assert (await kek.generate_data_key(CONTEXT))[1].kek_version == 2
    with pytest.raises(StoredDataUnreadable):
        await kek.unwrap(dataclasses.replace(new, kek_version=1), CONTEXT)
    with pytest.raises(StoredDataUnreadable):
        await kek.unwrap(dataclasses.replace(old, kek_version=2), CONTEXT)


async def test_rotation_while_keys_are_in_use_fails_nothing(provider: Provider) -> None:
    """Reads and writes on both sides of it, at once."""
    pairs = [await provider.kek.generate_data_key(CONTEXT) for _ in range(4)]
    reads = [provider.kek.unwrap(wrapped, CONTEXT) for _, wrapped in pairs]
    rotated, *opened = await asyncio.gather(provider.rotate(), *reads)
    assert opened == [key for key, _ in pairs]
    rewrapped = await asyncio.gather(*(rotated.rewrap(wrapped, CONTEXT) for _, wrapped in pairs))
    assert {wrapped.kek_version for wrapped in rewrapped} == {2}


async def test_wrap_under_a_version_that_is_gone_is_unreadable_and_the_rest_is_not(provider: Provider) -> None:
    """Rewrap before destroying an old version: this is what happens otherwise."""
    key, old = await provider.kek.generate_data_key(CONTEXT)
    kek = await provider.without_old_versions()
    if kek is None:
        return  # KMS keeps every key material as long as the key.
    for call in (kek.unwrap, kek.rewrap):
        with pytest.raises(StoredDataUnreadable, match="version 1"):
            await call(old, CONTEXT)
    new = await kek.wrap(key, CONTEXT)
    assert new.kek_version == 2
    assert await kek.unwrap(new, CONTEXT) == key


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
async def test_fault_fails_closed_and_its_cure_brings_the_same_key_back(provider: Provider, fault: Fault) -> None:
    """Refused keys are FAILED_PRECONDITION, providers that cannot answer UNAVAILABLE; no call succeeds."""
    if fault in provider.impossible:
        await require_impossible(provider, fault)
        return
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    expected = FailedPrecondition if fault in REFUSED else Unavailable
    reason = Reason.KEY_NOT_ACTIVE if fault in REFUSED else Reason.DEPENDENCY_UNAVAILABLE
    async with provider.fault(fault) as kek:
        for outcome in await outcomes(kek, key, wrapped):
            assert isinstance(outcome, expected), outcome
            assert outcome.reason is reason
            require_no_key_in(outcome, key)
        await require_state_tells(kek, fault)
    if fault is not Fault.DESTROYED or await still_has(provider):
        assert await provider.kek.unwrap(wrapped, CONTEXT) == key
        assert (await provider.kek.state()).status is KekStatus.ENABLED


async def test_state_names_the_key_that_wraps_carry(provider: Provider) -> None:
    """And says that it may be used."""
    _, wrapped = await provider.kek.generate_data_key(CONTEXT)
    state = await provider.kek.state()
    expected = KekState(kek_id=wrapped.kek_id, current_version=1, status=KekStatus.ENABLED, possible=state.possible)
    assert dataclasses.replace(state, is_for_development=False) == expected
    assert state.is_for_development == isinstance(provider, LocalProvider)


async def test_calls_given_up_by_their_caller_do_no_harm(provider: Provider) -> None:
    """A cancelled reader leaves the provider usable for the next."""
    key, wrapped = await provider.kek.generate_data_key(CONTEXT)
    tasks = [asyncio.ensure_future(provider.kek.unwrap(wrapped, CONTEXT)) for _ in range(8)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.result() == key for task in tasks[1::2]] == [True] * 4
    assert await provider.kek.unwrap(wrapped, CONTEXT) == key


async def require_impossible(provider: Provider, fault: Fault) -> None:
    """The provider gives a reason, and its state names no status that it cannot have."""
    assert provider.impossible[fault]
    if fault in STATUSES:
        assert STATUSES[fault] not in (await provider.kek.state()).possible


async def require_state_tells(kek: KeyEncryptionKey, fault: Fault) -> None:
    """The status itself, or the same refusal as every other call."""
    if fault in STATUSES:
        state = await kek.state()
        assert state.status is STATUSES[fault]
        assert state.status in state.possible
        return
    with pytest.raises(FailedPrecondition if fault in REFUSED else Unavailable):
        await kek.state()


async def still_has(provider: Provider) -> bool:
    """Whether the key came back; what is destroyed in a token never does."""
    return (await provider.kek.state()).status is not KekStatus.DESTROYED
