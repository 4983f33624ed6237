"""What is PKCS#11's own: logins, lost sessions, keys that could be read out, and versions as objects."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import ConfigurationError, Conflict, FailedPrecondition, StoredDataUnreadable, Unavailable
from casemate.sealing.kek import KekStatus
from casemate.sealing.keys import DataKey, KeyContext
from casemate.sealing.pkcs11 import Pkcs11Key, _generate
from casemate.sealing.pkcs11_token import Pkcs11Token
from casemate.secret import Secret
from tests.sealing.frames import require_no_local_holds
from tests.support.keks import Pkcs11Provider, SoftHsm

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)
LIMIT = timedelta(seconds=20)


async def make_object(provider: Pkcs11Provider, *, identifier: bytes, bits: int = 256, **attributes: bool) -> None:
    """A key object as another tool would make it."""
    from pkcs11 import Attribute, KeyType

    template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    template |= {Attribute[name]: value for name, value in attributes.items()}

    def make(session: Any) -> None:
        session.generate_key(KeyType.AES, bits, id=identifier, label=provider.label, store=True, template=template)

    await provider.token.run(make, writing=True)


async def test_the_key_cannot_be_read_out_or_used_to_wrap(pkcs11: Pkcs11Provider) -> None:
    """Sensitive, never extractable, and good for encryption alone."""
    from pkcs11 import Attribute, exceptions

    def look(session: Any) -> dict[str, bool]:
        (kek,) = session.get_objects({Attribute.LABEL: pkcs11.label})
        with pytest.raises(exceptions.AttributeSensitive):
            kek[Attribute.VALUE]
        names = ("NEVER_EXTRACTABLE", "ALWAYS_SENSITIVE", "LOCAL", "PRIVATE", "WRAP", "UNWRAP", "SIGN", "DERIVE")
        return {name: kek[Attribute[name]] for name in names}

    held = {"NEVER_EXTRACTABLE", "ALWAYS_SENSITIVE", "LOCAL", "PRIVATE"}
    assert {name for name, value in (await pkcs11.token.run(look)).items() if value} == held


@pytest.mark.parametrize(
    "wrong", [{"EXTRACTABLE": True}, {"SENSITIVE": False}, {"bits": 128}, {"identifier": b"12345"}], ids=str
)
async def test_object_that_is_no_fit_version_is_refused_wherever_it_stands(
    pkcs11: Pkcs11Provider, wrong: dict[str, Any]
) -> None:
    """Another tool made it under our label; the same without the fault is version 2."""
    _, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)
    await make_object(pkcs11, **({"identifier": b"\x02"} | wrong))
    for call in (pkcs11.kek.generate_data_key(CONTEXT), pkcs11.kek.unwrap(wrapped, CONTEXT), pkcs11.kek.state()):
        with pytest.raises(FailedPrecondition):
            await call


async def test_object_of_another_tool_is_a_version_if_it_fits(pkcs11: Pkcs11Provider) -> None:
    """CKA_ID 02, as pkcs11-tool writes it; the twin of the refusals above."""
    key, old = await pkcs11.kek.generate_data_key(CONTEXT)
    await make_object(pkcs11, identifier=b"\x02")
    assert await pkcs11.kek.unwrap(old, CONTEXT) == key
    assert (await pkcs11.kek.rewrap(old, CONTEXT)).kek_version == 2


async def test_two_objects_with_one_number_are_refused(pkcs11: Pkcs11Provider) -> None:
    """Nobody could say which of them wraps."""
    await make_object(pkcs11, identifier=b"\x01")
    with pytest.raises(FailedPrecondition, match="CKA_ID"):
        await pkcs11.kek.generate_data_key(CONTEXT)


async def test_of_two_who_add_a_version_at_once_none_harms_the_key(pkcs11: Pkcs11Provider) -> None:
    """One has made its object and not yet chosen its number: the other gives way, and its own object is gone."""
    from pkcs11 import Attribute

    key, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)
    rotating = Pkcs11Key(token=pkcs11.token, label=pkcs11.label)

    def stage(session: Any) -> None:
        _generate(session, pkcs11.label + " (being made)")

    def give_up(session: Any) -> None:
        (staged,) = session.get_objects({Attribute.LABEL: pkcs11.label + " (being made)"})
        staged.destroy()

    await pkcs11.token.run(stage, writing=True)
    with pytest.raises(Conflict, match="being made"):
        await rotating.rotate()
    assert await pkcs11.kek.unwrap(wrapped, CONTEXT) == key
    assert (await pkcs11.kek.state()).current_version == 1
    await pkcs11.token.run(give_up, writing=True)  # which finds one: what gave way left nothing behind
    assert await rotating.rotate() == 2
    assert (await pkcs11.kek.rewrap(wrapped, CONTEXT)).kek_version == 2


async def test_no_local_of_a_failed_wrap_holds_the_key(pkcs11: Pkcs11Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device fails in the middle of it; the next wrap succeeds."""
    from pkcs11 import exceptions

    def failing(*_: object) -> None:
        raise exceptions.DeviceMemory

    key = DataKey.generate()
    with monkeypatch.context() as broken:
        broken.setattr("casemate.sealing.pkcs11._gcm", failing)
        with pytest.raises(Unavailable) as failed:
            await pkcs11.kek.wrap(key, CONTEXT)
    require_no_local_holds(failed.value, key.reveal())
    assert await pkcs11.kek.unwrap(await pkcs11.kek.wrap(key, CONTEXT), CONTEXT) == key


async def test_creation_never_replaces_a_key(pkcs11: Pkcs11Provider) -> None:
    """A lost key-encryption key is lost data."""
    key, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)
    with pytest.raises(ConfigurationError, match="not replaced"):
        await Pkcs11Key.create(token=pkcs11.token, label=pkcs11.label)
    assert await pkcs11.kek.unwrap(wrapped, CONTEXT) == key


async def test_absent_key_is_destroyed_and_cannot_be_rotated(pkcs11: Pkcs11Provider) -> None:
    """A misspelt label finds nothing, and makes nothing."""
    absent = Pkcs11Key(token=pkcs11.token, label="no-such-key")
    assert (await absent.state()).status is KekStatus.DESTROYED
    with pytest.raises(FailedPrecondition):
        await absent.rotate()
    assert (await pkcs11.kek.state()).status is KekStatus.ENABLED


@pytest.mark.parametrize("use", ["ENCRYPT", "DECRYPT"])
async def test_key_for_one_direction_does_that_one(pkcs11: Pkcs11Provider, use: str) -> None:
    """An old version that may only decrypt, say; it is not ENABLED, and damage is still told from refusal."""
    import dataclasses

    from pkcs11 import Attribute

    key, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)

    def forbid(session: Any) -> None:
        (kek,) = session.get_objects({Attribute.LABEL: pkcs11.label})
        kek[Attribute[use]] = False

    await pkcs11.token.run(forbid, writing=True)
    assert (await pkcs11.kek.state()).status is KekStatus.DISABLED
    if use == "ENCRYPT":
        assert await pkcs11.kek.unwrap(wrapped, CONTEXT) == key
        with pytest.raises(FailedPrecondition, match="CKA_ENCRYPT"):
            await pkcs11.kek.wrap(key, CONTEXT)
        with pytest.raises(StoredDataUnreadable):
            await pkcs11.kek.unwrap(dataclasses.replace(wrapped, ciphertext=bytes(60)), CONTEXT)
    else:
        await pkcs11.kek.wrap(key, CONTEXT)
        with pytest.raises(FailedPrecondition, match="CKA_DECRYPT"):
            await pkcs11.kek.unwrap(wrapped, CONTEXT)


# The library's own finalizer complains of the session that we take away.
@pytest.mark.filterwarnings("ignore:Exception ignored in. .pkcs11:pytest.PytestUnraisableExceptionWarning")
async def test_lost_session_fails_one_call_and_is_opened_again(pkcs11: Pkcs11Provider) -> None:
    """As after an HSM's restart: the login is lost with it."""
    key, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)
    await pkcs11.token.run(lambda session: session.close())
    with pytest.raises(Unavailable):
        await pkcs11.kek.unwrap(wrapped, CONTEXT)
    assert await pkcs11.kek.unwrap(wrapped, CONTEXT) == key


async def test_second_login_of_the_process_is_refused_and_leaves_the_first(
    pkcs11: Pkcs11Provider, softhsm: SoftHsm
) -> None:
    """Its end would log the first out as well, in the middle of its work."""
    key, wrapped = await pkcs11.kek.generate_data_key(CONTEXT)
    with pytest.raises(ConfigurationError, match="share one"):
        async with Pkcs11Token.open(module=softhsm.module, label=softhsm.label, pin=softhsm.pin, timeout=LIMIT):
            pass
    assert await pkcs11.kek.unwrap(wrapped, CONTEXT) == key


async def test_wrong_pin_module_or_token_is_named_and_the_pin_is_not(softhsm: SoftHsm) -> None:
    """One line each, at the start; with all three right it opens."""
    right = {"module": softhsm.module, "label": softhsm.label, "pin": softhsm.pin, "timeout": LIMIT}
    for wrong, named in (
        ({"pin": Secret("not-the-pin-1234")}, "refuses the PIN"),
        ({"label": "no-such-token"}, "no-such-token"),
        ({"module": Path("/nowhere/lib.so")}, "/nowhere/lib.so"),
    ):
        with pytest.raises(ConfigurationError, match=named) as refused:
            async with Pkcs11Token.open(**(right | wrong)):
                pass
        assert "not-the-pin" not in str(refused.value)
        assert softhsm.pin.reveal() not in str(refused.value)
    async with Pkcs11Token.open(**right) as token:
        assert token.label == softhsm.label


async def test_refused_pin_is_not_tried_again(softhsm: SoftHsm) -> None:
    """A token locks itself after a few; the PIN being changed under a running process must not do that."""
    token = Pkcs11Token(module=softhsm.module, label=softhsm.label, pin=Secret("not-the-pin"), timeout=LIMIT)
    kek = Pkcs11Key(token=token, label="any")
    try:
        with pytest.raises(FailedPrecondition, match="refuses the PIN"):
            await kek.state()
        with pytest.raises(FailedPrecondition, match="not tried again"):
            await kek.state()
    finally:
        token.close()


async def test_all_calls_run_on_one_thread_that_is_not_the_callers(pkcs11: Pkcs11Provider) -> None:
    """A session is not for two threads, nor the event loop for a blocking call."""
    threads = await asyncio.gather(*(pkcs11.token.run(lambda _: threading.current_thread()) for _ in range(20)))
    assert len(set(threads)) == 1
    assert threads[0].name == "pkcs11"
    assert threads[0] is not threading.current_thread()
