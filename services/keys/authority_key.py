"""A new authority key for replicas that share no disk, made before the first of them starts.

On one machine a service makes the key itself, in a file beside its key-encryption key.
Replicas are given the same file, as a mounted secret, so somebody has to make it first.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path

from casemate.clock import SystemClock
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.provider import KekSettings, load_kek


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
