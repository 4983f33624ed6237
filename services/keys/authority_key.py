"""The authority key of replicas that share no disk: made before the first of them starts, and rewrapped.

On one machine a service makes the key itself, in a file beside its key-encryption key.
Replicas are given the same file, as a mounted secret, so somebody has to make it first.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from casemate.clock import SystemClock
from casemate.sealing.authority_rows import AuthorityKey, AuthorityKeyFile
from casemate.sealing.provider import KekSettings, load_kek


async def rewrapped_authority_key(settings: KekSettings, path: Path) -> str:
    """The authority key in `path`, wrapped anew under the current version, in base64; the file stays as it is.

    For a file that is mounted from a Secret, which is then replaced. The key inside is the same.

    Raises:
        ConfigurationError: the key-encryption key or the file is not to be had.
        StoredDataUnreadable: the one does not open the other.
        Unavailable: the key-encryption key does not answer.
    """
    async with load_kek(settings, clock=SystemClock()) as kek:
        return base64.b64encode(await AuthorityKeyFile(path).rewrapped(kek)).decode()


async def sealed_authority_key(settings: KekSettings) -> str:
    """A new key, sealed under the key-encryption key, in base64: it opens nothing by itself, and may be printed.

    Raises:
        ConfigurationError: the key-encryption key is not named, or not to be had.
        Unavailable: it does not answer.
    """
    async with load_kek(settings, clock=SystemClock()) as kek:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "authority.json"
            await AuthorityKey.load_or_create(kek, path)
            return base64.b64encode(path.read_bytes()).decode()
