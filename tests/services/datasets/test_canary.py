"""E25: planted rows and real keys, searched for in everything that PostgreSQL and the service write."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path

from casemate.sealing.keys import KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from services.datasets.key_store import LOG_CONTEXT, rows_context
from tests.services.datasets.world import manifest_of

CANARY = b"canary-71c3e09b"


def spellings(secret: bytes) -> list[bytes]:
    """How bytes may have been written down."""
    shown = [repr(secret)[2:-1], repr(secret)[2:-1].replace("\\", "\\\\")] if len(secret) != 32 else []
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), *(text.encode() for text in shown)]


def holds(text: bytes, secrets: list[bytes]) -> list[bytes]:
    lowered = text.lower()
    return [secret for secret in secrets if any(part in text or part in lowered for part in spellings(secret))]


async def _keys(world) -> list[bytes]:
    """Every secret key of the service: data key, log seed, authority key, and the key-encryption key."""
    ring = LocalKeyRing.load(world.settings.kek.kek_file)
    authority = KeyContext(purpose="authority-rows", tenant="", name="authority", version=1)
    wraps = [(authority, world.settings.authority_key.read_bytes())]
    async with world.sql(data_keys=True) as sql:
        for purpose, context in (("dataset-rows", rows_context("acme", "digits", 1)), ("log-signing", LOG_CONTEXT)):
            wraps.append((context, await sql.fetchval("SELECT wrapped FROM data_keys WHERE purpose = $1", purpose)))
    document = json.loads(world.settings.kek.kek_file.read_bytes())
    kek = [base64.b64decode(key) for key in document["versions"].values()]
    return kek + [(await ring.unwrap(WrappedKey.parse(wrapped), context)).reveal() for context, wrapped in wraps]


async def test_no_row_and_no_key_is_in_heap_wal_logs_or_running_queries(world, embedded_postgres, caplog, capfd):
    chunks = tuple(b"%d,%s\n" % (number, CANARY) for number in range(50))
    seen: list[str] = []
    ended = asyncio.Event()

    async def look():
        async with world.sql() as sql:
            while not ended.is_set():
                seen.extend(str(row) for row in await sql.fetch("SELECT datname, query FROM pg_stat_activity"))
                await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)
    assert CANARY in (await trainer.pull())[1][0].records[0]
    LocalKeyRing.rotate(world.settings.kek.kek_file)
    house = world.actor("operator", tenant="casemate", scopes="admin")
    await house.rewrap()
    secrets = [CANARY, *await _keys(world)]
    await trainer.shred()
    ended.set()
    await looking
    async with world.sql() as sql:
        await sql.execute("CHECKPOINT")
        folder = Path(await sql.fetchval("SHOW data_directory"))

    assert any("sealed_rows" in query for query in seen), "the search saw the service's own queries"
    assert holds("\n".join(seen).encode(), secrets) == []
    assert await asyncio.to_thread(_files_holding, folder, [b"sealed_rows"]), "the search does see what is plain"
    assert await asyncio.to_thread(_files_holding, folder, secrets) == []
    assert holds(embedded_postgres.log_file.read_bytes(), secrets) == []
    assert holds(world.settings.audit_file.read_bytes(), secrets) == []
    out, errors = capfd.readouterr()
    assert holds((caplog.text + out + errors).encode(), secrets) == []


def _files_holding(folder: Path, secrets: list[bytes]) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and holds(path.read_bytes(), secrets):
                found.append(path.name)
    return found
