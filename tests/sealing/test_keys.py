"""Data keys, their wraps, and the local key ring."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.kek import KekStatus, KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.secret import Secret

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kek" / "datasets.json"


@pytest.fixture
def ring(path: Path) -> LocalKeyRing:
    return LocalKeyRing.create(path)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


async def test_generated_key_unwraps_to_itself_after_a_restart(ring: LocalKeyRing, path: Path) -> None:
    """Through the protocol, the stored bytes and the file."""
    kek: KeyEncryptionKey = ring
    key, wrapped = await kek.generate_data_key(CONTEXT)
    assert key.reveal() not in wrapped.to_bytes()
    assert await LocalKeyRing.load(path).unwrap(WrappedKey.parse(wrapped.to_bytes()), CONTEXT) == key


async def test_every_flipped_bit_of_a_wrapped_key_is_refused(ring: LocalKeyRing) -> None:
    """Format, name, version, digest, nonce, ciphertext and tag alike."""
    key, wrapped = await ring.generate_data_key(CONTEXT)
    stored = wrapped.to_bytes()
    for bit in range(len(stored) * 8):
        with pytest.raises(StoredDataUnreadable):
            await ring.unwrap(WrappedKey.parse(flipped(stored, bit)), CONTEXT)
    assert await ring.unwrap(WrappedKey.parse(stored), CONTEXT) == key


async def test_every_truncation_and_extension_is_refused(ring: LocalKeyRing) -> None:
    """Down to nothing at all."""
    _, wrapped = await ring.generate_data_key(CONTEXT)
    stored = wrapped.to_bytes()
    for changed in [stored[:length] for length in range(len(stored))] + [stored + b"\0"]:
        with pytest.raises(StoredDataUnreadable):
            await ring.unwrap(WrappedKey.parse(changed), CONTEXT)


@pytest.mark.parametrize(
    "changes", [{"purpose": "model-file"}, {"tenant": "globex"}, {"name": "digit"}, {"version": 2}], ids=str
)
async def test_another_context_does_not_unwrap(ring: LocalKeyRing, changes: dict[str, object]) -> None:
    """Nor does it with the digest of the context exchanged: the wrap itself is bound."""
    key, wrapped = await ring.generate_data_key(CONTEXT)
    other = dataclasses.replace(CONTEXT, **changes)
    with pytest.raises(StoredDataUnreadable, match="another context"):
        await ring.unwrap(wrapped, other)
    with pytest.raises(StoredDataUnreadable, match="do not authenticate"):
        await ring.unwrap(dataclasses.replace(wrapped, context_sha256=other.sha256()), other)
    assert await ring.unwrap(wrapped, CONTEXT) == key


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
contexts = st.builds(
    KeyContext, purpose=text, tenant=text, name=text, version=st.integers(min_value=0, max_value=2**64 - 1)
)


@settings(deadline=None)
@given(one=contexts, other=contexts)
def test_contexts_share_bytes_only_when_they_are_equal(one: KeyContext, other: KeyContext) -> None:
    """Length prefixes leave no boundary to move."""
    assert (one.to_bytes() == other.to_bytes()) == (one == other)


def test_a_boundary_between_fields_cannot_be_moved() -> None:
    """The case that plain concatenation gets wrong."""
    one = KeyContext(purpose="p", tenant="ab", name="c", version=1)
    assert one.to_bytes() != dataclasses.replace(one, tenant="a", name="bc").to_bytes()


async def test_another_ring_does_not_unwrap(ring: LocalKeyRing, tmp_path: Path) -> None:
    """Even one that claims the same name."""
    key, wrapped = await ring.generate_data_key(CONTEXT)
    other = LocalKeyRing.create(tmp_path / "other.json")
    with pytest.raises(StoredDataUnreadable):
        await other.unwrap(wrapped, CONTEXT)
    namesake = LocalKeyRing(kek_id=wrapped.kek_id, versions={1: Secret(bytes(32))})
    with pytest.raises(StoredDataUnreadable, match="do not authenticate"):
        await namesake.unwrap(wrapped, CONTEXT)
    assert await ring.unwrap(wrapped, CONTEXT) == key


async def test_rotation_keeps_old_keys_readable_and_rewraps_them(ring: LocalKeyRing, path: Path) -> None:
    """The data key stays the same, so nothing it seals is touched."""
    key, old = await ring.generate_data_key(CONTEXT)
    rotated = LocalKeyRing.rotate(path)
    assert (await rotated.state()).current_version == 2
    assert (await rotated.state()).status is KekStatus.ENABLED
    assert await rotated.unwrap(old, CONTEXT) == key
    new = await rotated.rewrap(old, CONTEXT)
    assert (old.kek_version, new.kek_version) == (1, 2)
    assert await LocalKeyRing.load(path).unwrap(new, CONTEXT) == key
    with pytest.raises(StoredDataUnreadable, match="version 2"):
        await ring.unwrap(new, CONTEXT)


async def test_secrets_and_data_keys_do_not_open_as_each_other(ring: LocalKeyRing) -> None:
    """Same ring, same context, different use."""
    key, wrapped = await ring.generate_data_key(CONTEXT)
    sealed = ring.seal_secret(Secret(key.reveal()), CONTEXT)
    with pytest.raises(StoredDataUnreadable):
        ring.open_secret(wrapped.to_bytes(), CONTEXT)
    with pytest.raises(StoredDataUnreadable):
        await ring.unwrap(WrappedKey.parse(sealed), CONTEXT)
    assert ring.open_secret(sealed, CONTEXT).reveal() == key.reveal()


def test_creation_never_replaces_a_ring(ring: LocalKeyRing, path: Path) -> None:
    """A lost key-encryption key is lost data."""
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not replaced"):
        LocalKeyRing.create(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("mode", [0o601, 0o604, 0o640, 0o666])
def test_file_that_others_can_touch_is_refused(ring: LocalKeyRing, path: Path, mode: int) -> None:
    """0600 or nothing; 0400, which is less, will do."""
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        LocalKeyRing.load(path)
    path.chmod(0o400)
    LocalKeyRing.load(path)


def test_missing_file_or_folder_in_its_place_is_named(tmp_path: Path) -> None:
    """One clear line each."""
    with pytest.raises(ConfigurationError, match="missing"):
        LocalKeyRing.load(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match="not a plain file"):
        LocalKeyRing.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"format": "casemate-local-kek/2", "kek_id": "a", "versions": {}}',
        b'{"format": "casemate-local-kek/1", "kek_id": "a", "versions": {}}',
        b'{"format": "casemate-local-kek/1", "kek_id": "a", "versions": {"1": "Q0FOQVJZ"}}',
        b'{"format": "casemate-local-kek/1", "kek_id": "a", "versions": {"1": 7}}',
        b'{"format": "casemate-local-kek/1", "kek_id": 7, "versions": {"1": ""}}',
        b'{"format": "casemate-local-kek/1", "kek_id": "a", "versions": []}',
        b"{" + b" " * 70_000 + b"}",
    ],
)
def test_file_that_is_no_ring_is_refused_without_quoting_it(path: Path, content: bytes) -> None:
    """Half a key in a log line is half a key lost."""
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        LocalKeyRing.load(path)
    assert "Q0FOQVJZ" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__cause__ is None


def test_ring_in_the_file_is_what_is_loaded(ring: LocalKeyRing, path: Path) -> None:
    """The twin of the refusals above: the same document, well-formed."""
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps(document))
    LocalKeyRing.load(path)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_data_key_has_32_bytes_and_does_not_show_them(length: int) -> None:
    """Whatever a provider returned."""
    with pytest.raises(StoredDataUnreadable):
        DataKey(bytes(length))
    assert "00" not in f"{DataKey(bytes(32))!r}{DataKey(bytes(32))}"


def test_secret_has_no_hash_no_state_and_no_copy() -> None:
    """A set would compare it by its bits, and a state is its value; two of them compare in constant time."""
    key = DataKey.generate()
    for take in (hash, copy.copy, copy.deepcopy, Secret.__getstate__):
        with pytest.raises(TypeError):
            take(key)
    assert key == DataKey(key.reveal())
    assert key != DataKey.generate()
