"""A ring that is rotated under a running process, well and badly."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path

import pytest

from casemate.errors import StoredDataUnreadable
from casemate.sealing.keys import KeyContext
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.watched_ring import WatchedKeyRing

CONTEXT = KeyContext(purpose="test", tenant="acme", name="digits", version=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    LocalKeyRing.create(tmp_path / "kek.json")
    return tmp_path / "kek.json"


async def test_a_rotated_ring_is_used_at_once_and_opens_what_was_wrapped_before(path: Path) -> None:
    ring = WatchedKeyRing(path)
    key, before = await ring.generate_data_key(CONTEXT)
    LocalKeyRing.rotate(path)
    after = await ring.wrap(key, CONTEXT)
    assert (before.kek_version, after.kek_version, (await ring.state()).current_version) == (1, 2, 2)
    assert await ring.unwrap(before, CONTEXT) == await ring.unwrap(after, CONTEXT) == key
    assert (await ring.rewrap(before, CONTEXT)).kek_version == 2


async def test_what_another_process_wrapped_since_the_rotation_opens(path: Path) -> None:
    ring = WatchedKeyRing(path)
    key, wrapped = await LocalKeyRing.rotate(path).generate_data_key(CONTEXT)
    assert await ring.unwrap(wrapped, CONTEXT) == key
    _, foreign = await LocalKeyRing.create(path.with_name("other.json")).generate_data_key(CONTEXT)
    with pytest.raises(StoredDataUnreadable):
        await ring.unwrap(foreign, CONTEXT)


def _gone(path: Path) -> None:
    path.unlink()


def _not_a_ring(path: Path) -> None:
    path.write_text("{}")


def _open_to_others(path: Path) -> None:
    path.chmod(0o644)


def _another_key(path: Path) -> None:
    path.unlink()
    LocalKeyRing.create(path)


def _another_key_under_a_number_in_use(path: Path) -> None:
    document = json.loads(path.read_bytes())
    document["versions"] = {"1": base64.b64encode(bytes(32)).decode(), "2": document["versions"]["1"]}
    path.write_text(json.dumps(document))


def _nested_without_end(path: Path) -> None:
    path.write_bytes(b"[" * 60_000)


SPOILT = [_gone, _not_a_ring, _open_to_others, _another_key, _another_key_under_a_number_in_use, _nested_without_end]


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_bad_file_is_counted_once_and_the_ring_in_use_stays_until_a_good_one_comes(path, spoil, caplog) -> None:
    failures: list[str] = []
    ring = WatchedKeyRing(path, reload_failed=lambda: failures.append("failed"))
    key, wrapped = await ring.generate_data_key(CONTEXT)
    good = path.read_bytes()
    spoil(path)
    for _ in range(3):
        assert await ring.unwrap(wrapped, CONTEXT) == key
    assert failures == ["failed"]
    assert "the key-encryption key in use stays" in caplog.text
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(good)
    LocalKeyRing.rotate(path)
    assert (await ring.wrap(key, CONTEXT)).kek_version == 2


async def test_a_ring_put_back_from_before_the_rotation_is_refused(path: Path) -> None:
    old = path.read_bytes()
    LocalKeyRing.rotate(path)
    failures: list[str] = []
    ring = WatchedKeyRing(path, reload_failed=lambda: failures.append("failed"))
    key, wrapped = await ring.generate_data_key(CONTEXT)
    path.write_bytes(old)
    assert await ring.unwrap(wrapped, CONTEXT) == key
    assert failures == ["failed"]


async def test_a_file_that_could_not_be_opened_for_a_moment_is_read_at_the_next_use(path, monkeypatch) -> None:
    """Out of descriptors: nothing changes the file afterwards, and what others wrapped must open all the same."""
    failures: list[str] = []
    ring = WatchedKeyRing(path, reload_failed=lambda: failures.append("failed"))
    key, wrapped = await LocalKeyRing.rotate(path).generate_data_key(CONTEXT)
    really = os.open

    def exhausted(name, *arguments, **named):
        if Path(name) == path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(name, *arguments, **named)

    with monkeypatch.context() as full:
        full.setattr(os, "open", exhausted)
        for _ in range(3):
            assert (await ring.state()).current_version == 1
    assert failures == ["failed"]
    assert (await ring.state()).current_version == 2
    assert await ring.unwrap(wrapped, CONTEXT) == key


async def test_an_old_version_that_an_operator_removed_is_no_reason_to_refuse_the_ring(path: Path) -> None:
    """The twin of another key under a number in use: none."""
    ring = WatchedKeyRing(path)
    LocalKeyRing.rotate(path)
    assert (await ring.state()).current_version == 2
    document = json.loads(path.read_bytes())
    del document["versions"]["1"]
    path.write_text(json.dumps(document))
    LocalKeyRing.rotate(path)
    assert (await ring.state()).current_version == 3
