"""What an operator puts into the Secret of an authority key after a rotation."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.keys import WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import KekSettings
from services.keys.authority_key import rewrapped_authority_key

ROW = ("grants", "g1", {"verb": "read"})


async def test_the_key_is_printed_under_the_new_version_and_the_file_stays(tmp_path: Path) -> None:
    """What is printed verifies the rows that the old file does; a file that is not there prints nothing."""
    ring, file = tmp_path / "kek.json", tmp_path / "authority.json"
    mac = (await AuthorityKey.load_or_create(LocalKeyRing.create(ring), file)).mac(*ROW)
    before = file.read_bytes()
    LocalKeyRing.rotate(ring)
    printed = base64.b64decode(await rewrapped_authority_key(KekSettings(kek_file=ring), file))
    assert file.read_bytes() == before
    assert WrappedKey.parse(printed).kek_version == 2
    file.write_bytes(printed)
    (await AuthorityKey.load_or_create(LocalKeyRing.load(ring), file, create=False)).verify(*ROW, mac)
    with pytest.raises(ConfigurationError, match="missing"):
        await rewrapped_authority_key(KekSettings(kek_file=ring), tmp_path / "none.json")
