"""Rewrapping: everything, once, resumably, and nothing that moved meanwhile."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from casemate.errors import Unavailable
from casemate.sealing.authority_rows import AuthorityKey, AuthorityKeyFile
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rewrapping import RewrapProgress, StoredWrap, WrappedUnder, rewrap_all, survey


def context(number: int) -> KeyContext:
    return KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=number)


class Shelf:
    """Wrapped keys in memory, in pages of ten."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[KeyContext, bytes]] = {}

    async def count(self) -> int:
        return len(self.rows)

    async def pages(self):
        names = sorted(self.rows)
        for start in range(0, len(names), 10):
            yield [
                StoredWrap(identifier=name, context=self.rows[name][0], stored=self.rows[name][1])
                for name in names[start : start + 10]
                if name in self.rows
            ]

    async def replace(self, changes) -> int:
        done = 0
        for wrap, fresh in changes:
            if self.rows.get(wrap.identifier, (None, b""))[1] == wrap.stored:
                self.rows[wrap.identifier] = (wrap.context, fresh)
                done += 1
        return done


@pytest.fixture
async def filled(tmp_path: Path):
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    shelf, keys = Shelf(), {}
    for number in range(25):
        key, wrapped = await ring.generate_data_key(context(number))
        keys[f"{number:02}"] = key
        shelf.rows[f"{number:02}"] = (context(number), wrapped.to_bytes())
    return shelf, keys, LocalKeyRing.rotate(tmp_path / "kek.json")


async def result(ring, *stores) -> RewrapProgress:
    return [progress async for progress in rewrap_all(ring, stores)][-1]


async def test_all_keys_come_under_the_new_version_and_are_the_same_keys(filled) -> None:
    shelf, keys, ring = filled
    assert await result(ring, shelf) == RewrapProgress(seen=25, total=25, rewrapped=25, failed=0)
    kek_id = ring.describe().kek_id
    assert await survey([shelf]) == {WrappedUnder(purpose="dataset-rows", kek_id=kek_id, kek_version=2): 25}
    for name, (bound, stored) in shelf.rows.items():
        assert await ring.unwrap(WrappedKey.parse(stored), bound) == keys[name]
    assert (await result(ring, shelf)).rewrapped == 0


async def test_an_interrupted_run_goes_on_with_the_rest(filled) -> None:
    shelf, _, ring = filled
    work = rewrap_all(ring, [shelf])
    for _ in range(2):
        progress = await anext(work)
    await work.aclose()
    assert progress.rewrapped == 10
    assert (await result(ring, shelf)).rewrapped == 15


async def test_a_key_that_is_deleted_meanwhile_does_not_come_back(filled) -> None:
    shelf, _, ring = filled

    class Deleting:
        async def state(self):
            return await ring.state()

        async def rewrap(self, wrapped, bound):
            shelf.rows.pop("03", None)
            return await ring.rewrap(wrapped, bound)

    done = await result(Deleting(), shelf)
    assert "03" not in shelf.rows
    assert (done.seen, done.rewrapped, done.failed) == (25, 24, 0)


async def test_keys_that_do_not_open_are_counted_named_and_left_alone(filled, caplog) -> None:
    shelf, _, ring = filled
    shelf.rows["05"] = (context(6), shelf.rows["05"][1])
    shelf.rows["07"] = (context(7), b"not a wrapped key")
    before = dict(shelf.rows)
    done = await result(ring, shelf)
    assert (done.rewrapped, done.failed) == (23, 2)
    assert (shelf.rows["05"], shelf.rows["07"]) == (before["05"], before["07"])
    assert "wrapped key 05" in caplog.text
    assert (await survey([shelf]))[WrappedUnder(purpose="dataset-rows", kek_id="", kek_version=0)] == 1


async def test_a_provider_that_is_down_ends_the_run_and_keeps_what_was_done(filled) -> None:
    shelf, _, ring = filled
    calls = 0

    class Failing:
        async def state(self):
            return await ring.state()

        async def rewrap(self, wrapped, bound):
            nonlocal calls
            calls += 1
            if calls > 10:
                raise Unavailable("down")
            return await ring.rewrap(wrapped, bound)

    with pytest.raises(Unavailable):
        await result(Failing(), shelf)
    assert (await result(ring, shelf)).rewrapped == 15


async def test_the_authority_keys_file_is_rewrapped_and_still_verifies(tmp_path: Path) -> None:
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    path = tmp_path / "authority.json"
    columns = {"name": secrets.token_hex(4)}
    mac = (await AuthorityKey.load_or_create(ring, path)).mac("table", "1", columns)
    ring = LocalKeyRing.rotate(tmp_path / "kek.json")
    assert (await result(ring, AuthorityKeyFile(path))).rewrapped == 1
    assert WrappedKey.parse(path.read_bytes()).kek_version == 2
    assert path.stat().st_mode & 0o777 == 0o600
    (await AuthorityKey.load_or_create(ring, path)).verify("table", "1", columns, mac)
    assert isinstance(await ring.unwrap(WrappedKey.parse(path.read_bytes()), _authority_context()), DataKey)


def _authority_context() -> KeyContext:
    return KeyContext(purpose="authority-rows", tenant="", name="authority", version=1)
