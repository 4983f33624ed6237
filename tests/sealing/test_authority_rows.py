"""Rows of authority: only the service that holds the key can write one."""

from __future__ import annotations

import asyncio
import errno
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing import private_files
from casemate.sealing.authority_rows import AuthorityKey, AuthorityKeyFile, VerifiedRow
from casemate.sealing.keys import DataKey, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rewrapping import rewrap_all, survey

KEY = AuthorityKey(DataKey(bytes(range(32))))
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
COLUMNS = {
    "caller": "spiffe://casemate.internal/t/acme/trainer",
    "verb": "read",
    "deny": False,
    "expires_at": NOON,
    "uses": 3,
    "digest": b"\x01",
    "note": None,
    "scopes": ("a", "b"),
}

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    text,
    st.binary(max_size=6),
    st.datetimes(timezones=st.just(UTC)),
    st.lists(text, max_size=3).map(tuple),
)
rows = st.tuples(text, text, st.dictionaries(text, values, max_size=4))


def test_row_that_the_service_wrote_verifies() -> None:
    """And comes back as a proof, read-only."""
    mac = KEY.mac("grants", "g1", COLUMNS)
    row = KEY.verify("grants", "g1", dict(reversed(COLUMNS.items())), mac)
    assert (len(mac), row.table, row.primary_key, dict(row.columns)) == (32, "grants", "g1", COLUMNS)
    with pytest.raises(TypeError):
        row.columns["verb"] = "push"


def test_a_mac_that_is_begun_once_is_the_one_that_is_made_at_once():
    begun = KEY.begin_mac("token_identifier", "acme", "nonce", length=16)
    for nonce in (bytes(16), bytes(range(16)), b"\xff" * 16):
        assert begun(nonce) == KEY.mac("token_identifier", "acme", {"nonce": nonce})
    other = KEY.begin_mac("token_identifier", "globex", "nonce", length=16)
    assert begun(bytes(16)) != other(bytes(16))
    for length in (0, 15, 17):  # the length is said before, so another one would be the MAC of no row
        with pytest.raises(ValueError, match="length"):
            begun(bytes(length))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("caller", "spiffe://casemate.internal/t/acme/mallory"),
        ("deny", 0),
        ("deny", None),
        ("expires_at", NOON + timedelta(microseconds=1)),
        ("uses", "3"),
        ("uses", True),
        ("digest", "\x01"),
        ("note", ""),
        ("note", "None"),
        ("scopes", ("ab",)),
        ("scopes", ("a", "b", "")),
        ("scopes", ()),
    ],
)
def test_any_changed_column_is_refused(name: str, value: object) -> None:
    """Other values and other types of the same look."""
    mac = KEY.mac("grants", "g1", COLUMNS)
    with pytest.raises(StoredDataUnreadable, match="g1"):
        KEY.verify("grants", "g1", {**COLUMNS, name: value}, mac)
    KEY.verify("grants", "g1", {**COLUMNS}, mac)


def test_column_added_dropped_or_renamed_is_refused() -> None:
    """The names are under the MAC, and how many there are."""
    mac = KEY.mac("grants", "g1", COLUMNS)
    without = {name: value for name, value in COLUMNS.items() if name != "deny"}
    for columns in ({**COLUMNS, "extra": None}, without, {**without, "denied": False}, {}):
        with pytest.raises(StoredDataUnreadable):
            KEY.verify("grants", "g1", columns, mac)


def test_row_moved_to_another_place_is_refused() -> None:
    """Copied under another primary key, or into another table."""
    mac = KEY.mac("grants", "g1", COLUMNS)
    for table, primary_key in (("grants", "g2"), ("clients", "g1"), ("grantsg", "1")):
        with pytest.raises(StoredDataUnreadable):
            KEY.verify(table, primary_key, COLUMNS, mac)


def test_inserted_row_is_refused_whatever_its_mac() -> None:
    """A superuser has every row to copy a MAC from, and no key."""
    good = KEY.mac("grants", "g1", COLUMNS)
    forged = AuthorityKey(DataKey(bytes(32))).mac("grants", "g1", COLUMNS)
    for mac in (None, b"", bytes(32), forged, good[:-1], good + b"\0"):
        with pytest.raises(StoredDataUnreadable):
            KEY.verify("grants", "g1", COLUMNS, mac)
    for bit in range(256):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoredDataUnreadable):
            KEY.verify("grants", "g1", COLUMNS, bytes(changed))


def typed(row: tuple[str, str, dict[str, object]]) -> object:
    """Equality that tells 1 from True."""
    table, primary_key, columns = row
    return table, primary_key, sorted((name, type(value).__name__, repr(value)) for name, value in columns.items())


@settings(deadline=None)
@given(one=rows, other=rows)
def test_rows_share_a_mac_only_when_they_are_equal(one: tuple, other: tuple) -> None:
    """The encoding is one to one."""
    assert (KEY.mac(*one) == KEY.mac(*other)) == (typed(one) == typed(other))
    KEY.verify(*one, KEY.mac(*one))


def test_same_instant_in_another_zone_is_the_same_row() -> None:
    """The database may give a timestamp back in its own zone."""
    moved = {**COLUMNS, "expires_at": NOON.astimezone(timezone(timedelta(hours=2)))}
    KEY.verify("grants", "g1", moved, KEY.mac("grants", "g1", COLUMNS))


@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}, object()])
def test_value_without_a_canonical_form_is_a_fault_of_ours(value: object) -> None:
    """The twin is every canonical value."""
    with pytest.raises(TypeError, match="canonical"):
        KEY.mac("grants", "g1", {"column": value})


def test_naive_datetime_is_a_fault_of_ours() -> None:
    """It names no instant."""
    with pytest.raises(ValueError, match="zone"):
        KEY.mac("grants", "g1", {"column": NOON.replace(tzinfo=None)})


@pytest.mark.parametrize("value", [NOON.replace(tzinfo=None), 1.5])
def test_a_stored_value_that_no_row_of_ours_can_hold_is_unreadable_and_no_fault_of_ours(value: object) -> None:
    """A superuser may write an infinite timestamp, which the driver gives without a zone."""
    mac = KEY.mac("grants", "g1", {"column": NOON})
    with pytest.raises(StoredDataUnreadable):
        KEY.verify("grants", "g1", {"column": value}, mac)
    KEY.verify("grants", "g1", {"column": NOON}, mac)


def test_proof_cannot_be_made_by_hand() -> None:
    """Wall 11."""
    with pytest.raises(TypeError, match="AuthorityKey"):
        VerifiedRow(table="grants", primary_key="g1", columns={}, seal=object())


async def test_key_survives_a_restart_and_never_lies_in_clear(tmp_path: Path) -> None:
    """Wrapped under the service's key-encryption key, mode 0600."""
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    path = tmp_path / "keys" / "authority.key"
    mac = (await AuthorityKey.load_or_create(ring, path)).mac("grants", "g1", COLUMNS)
    (await AuthorityKey.load_or_create(ring, path)).verify("grants", "g1", COLUMNS, mac)
    assert path.stat().st_mode & 0o777 == 0o600
    other = LocalKeyRing.create(tmp_path / "other.json")
    with pytest.raises(StoredDataUnreadable):
        await AuthorityKey.load_or_create(other, path)


async def test_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """It is wrapped, and still nobody's business."""
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    path = tmp_path / "authority.key"
    await AuthorityKey.load_or_create(ring, path)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await AuthorityKey.load_or_create(ring, path)
    path.chmod(0o640)  # as an orchestrator mounts it
    await AuthorityKey.load_or_create(ring, path)


async def test_mounted_key_is_counted_and_rewrapped_as_it_is_loaded_and_keeps_its_mode(tmp_path: Path) -> None:
    """0640, as an orchestrator mounts it; 0644 is refused here as at the start."""
    path = tmp_path / "authority.key"
    await AuthorityKey.load_or_create(LocalKeyRing.create(tmp_path / "kek.json"), path)
    ring = LocalKeyRing.rotate(tmp_path / "kek.json")
    path.chmod(0o640)
    assert {under.kek_version for under in await survey([AuthorityKeyFile(path)])} == {1}
    assert [progress async for progress in rewrap_all(ring, [AuthorityKeyFile(path)])][-1].rewrapped == 1
    assert {under.kek_version for under in await survey([AuthorityKeyFile(path)])} == {2}
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await survey([AuthorityKeyFile(path)])


async def test_key_on_a_mount_that_cannot_be_written_stays_and_keeps_nothing_else_from_being_rewrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Secret's mount. What is to be put into the Secret holds the same key, under the new version."""
    mounted, ours = tmp_path / "mounted.key", tmp_path / "ours.key"
    old = LocalKeyRing.create(tmp_path / "kek.json")
    for path in (mounted, ours):
        await AuthorityKey.load_or_create(old, path)
    mac = (await AuthorityKey.load_or_create(old, mounted)).mac("grants", "g1", COLUMNS)
    before = mounted.read_bytes()
    ring = LocalKeyRing.rotate(tmp_path / "kek.json")
    really = private_files._write_new

    def read_only(path: Path, *arguments: object, **named: object) -> None:
        if "mounted" in path.name:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        really(path, *arguments, **named)

    monkeypatch.setattr(private_files, "_write_new", read_only)
    stores = [AuthorityKeyFile(mounted), AuthorityKeyFile(ours)]
    done = [progress async for progress in rewrap_all(ring, stores)][-1]
    assert (done.seen, done.rewrapped, done.failed) == (2, 1, 0)
    assert sorted(under.kek_version for under in await survey(stores)) == [1, 2]
    assert mounted.read_bytes() == before
    assert "until its Secret is replaced" in caplog.text
    new = await AuthorityKeyFile(mounted).rewrapped(ring)
    assert WrappedKey.parse(new).kek_version == 2
    mounted.write_bytes(new)
    (await AuthorityKey.load_or_create(ring, mounted, create=False)).verify("grants", "g1", COLUMNS, mac)


async def test_two_processes_that_start_together_end_with_one_key(tmp_path: Path) -> None:
    """Whoever is second takes the key of the first."""
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    keys = await asyncio.gather(*(AuthorityKey.load_or_create(ring, tmp_path / "authority.key") for _ in range(8)))
    assert len({key.mac("grants", "g1", COLUMNS) for key in keys}) == 1


async def test_lost_key_is_not_replaced_where_rows_wait_for_it_and_a_restored_one_loads(tmp_path):
    ring, path = LocalKeyRing.create(tmp_path / "kek.json"), tmp_path / "authority.json"
    mac = (await AuthorityKey.load_or_create(ring, path)).mac("grants", "g1", COLUMNS)
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigurationError, match="is gone"):
        await AuthorityKey.load_or_create(ring, path, create=False)
    assert not path.exists()
    path.touch(mode=0o600)
    path.write_bytes(kept)
    (await AuthorityKey.load_or_create(ring, path, create=False)).verify("grants", "g1", COLUMNS, mac)
