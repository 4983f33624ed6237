"""A datasets service in a process of its own, for benches and for tests that watch its memory.

`python -m bench.datasets_server TRUST [plain]` takes the service's settings from its
environment and whom to trust from the JSON file TRUST, prints one JSON line with its port
when it serves, and ends when its standard input does. With `plain` it neither hashes nor
seals what is pushed, which the service itself cannot be told to do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.transport.floor import raise_floor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casemate.gate.core.trust import TrustState
    from casemate.sealing.keys import DataKey
    from services.datasets.push import ArrivedChunk, OpenUpload
    from services.datasets.upload import PlannedChunk

TRUSTED_HOURS = 4


def trust_of(path: Path) -> TrustState:
    """The trust that a file describes: a token key, a supplier's key, and a tenant that may do everything."""
    from casemate.gate.core.records import Grant, VerificationKey  # noqa: PLC0415  # behind the TLS floor
    from casemate.gate.core.trust import TrustSnapshot, TrustState  # noqa: PLC0415  # as above
    from casemate.signing.keys import PublicKey  # noqa: PLC0415  # as above
    from casemate.signing.signers import Signer  # noqa: PLC0415  # as above

    said = json.loads(path.read_text())
    tenant, supplier = said["tenant"], PublicKey.admit(base64.b64decode(said["supplier"]))
    now = datetime.now(UTC)
    signer = Signer(
        key_id=supplier.key_id,
        tenant=tenant,
        role="supplier",
        public_key=supplier,
        valid_from=now - timedelta(hours=1),
        valid_until=now + timedelta(hours=TRUSTED_HOURS),
    )
    grants = [
        Grant(id=verb, tenant=tenant, caller=f"t/{tenant}/*", verb=verb, resource="dataset/*")
        for verb in ("push", "read", "shred")
    ]
    trust = TrustState()
    trust.apply_snapshot(
        TrustSnapshot.build(
            epoch="bench",
            sequence=1,
            issuer=said["issuer"],
            keys=[VerificationKey.load(base64.b64decode(said["token_key"]))],
            grants=grants,
            signers=[signer],
        )
    )
    # Nobody feeds it: it is vouched for as long as it may take.
    trust.heard(time.monotonic() + 3600 * TRUSTED_HOURS)
    return trust


def take_plainly(upload: OpenUpload, _key: DataKey | None, chunk: PlannedChunk, data: bytes) -> ArrivedChunk:
    """As `OpenUpload` takes a chunk, and checks its records, with neither hash nor seal."""
    from casemate.sealing.rows import SealingBatch  # noqa: PLC0415  # behind the TLS floor
    from services.datasets.copying import encode_chunk  # noqa: PLC0415  # as above
    from services.datasets.push import ArrivedChunk  # noqa: PLC0415  # as above

    rows = upload.checked_rows(chunk, data)
    batch = SealingBatch(
        salt=bytes(24),
        commitment=bytes(32),
        first_ordinal=chunk.first_ordinal,
        rows=map(bytes, rows),
        write=partial(_write_rows, rows),
    )
    return ArrivedChunk(chunk, chunk.digest.leaf_hash, encode_chunk(upload.id, chunk, batch, list(map(len, rows))))


def _write_rows(rows: Iterable[bytes | memoryview], buffers: Sequence[memoryview]) -> None:
    for buffer, row in zip(buffers, rows, strict=True):
        buffer[:] = row


async def main(trust: Path, *, plain: bool) -> None:
    """Serves until standard input ends."""
    from casemate.settings import load_settings  # noqa: PLC0415  # behind the TLS floor
    from services.datasets import push  # noqa: PLC0415  # as above
    from services.datasets.app import serving  # noqa: PLC0415  # as above
    from services.datasets.settings import DatasetsSettings  # noqa: PLC0415  # as above

    if plain:
        # What is left out is what is measured; the service has no such switch.
        setattr(push.OpenUpload, "_take", take_plainly)  # noqa: B010  # mypy forbids the assignment
    settings = load_settings(DatasetsSettings, os.environ, component="datasets")  # noqa: TID251  # its __main__
    async with serving(settings, trust=trust_of(trust), lame_duck=timedelta()) as running:
        print(json.dumps({"port": running.port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    raise_floor(os.environ)  # noqa: TID251  # its __main__
    asyncio.run(main(Path(sys.argv[1]), plain="plain" in sys.argv[2:]))
