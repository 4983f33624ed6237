"""What the tests beside this share."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest

from casemate.errors import CasemateError
from tests.services.datasets.world import Actor, World, manifest_message

OTHER_BYTES = b"1,one\n2,twO\n"


NEVER = b"3,three\n4,four\n"


def unsigned(envelope: bytes) -> bytes:
    return json.dumps({**json.loads(envelope), "signatures": []}).encode()


def forged(envelope: bytes) -> bytes:
    parsed = json.loads(envelope)
    parsed["signatures"][0]["sig"] = "A" * 86 + "=="
    return json.dumps(parsed).encode()


async def refusal(actor: Actor, envelope: bytes) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        await actor.push([manifest_message(envelope)])
    return caught.value


TABLES = (
    *("uploads", "manifests", "batches", "sealed_rows", "labels", "retentions", "shreddings", "trained_models"),
    *("log_entries", "log_nodes", "log_head"),
)


async def everything(world: World) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and a digest of them; of the data keys too."""
    found = {}
    for data_keys, tables in ((False, TABLES), (True, ("data_keys",))):
        async with world.sql(data_keys=data_keys) as sql:
            for table in tables:
                digest = "coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '')"
                found[table] = tuple(await sql.fetchrow(f"SELECT count(*), {digest} FROM {table} t"))  # noqa: S608  # names above
    return found


@asynccontextmanager
async def nothing_changes(world: World):
    """Fails if one row of either database is another one behind the block."""
    before = await everything(world)
    yield
    assert await everything(world) == before


async def uploads(world: World) -> list[tuple[int, str, int, int]]:
    """Version, state, offset and stored rows of every attempt, in the order they began."""
    async with world.sql() as sql:
        found = await sql.fetch(
            "SELECT version, state, next_offset, (SELECT count(*) FROM sealed_rows WHERE upload = u.id) AS rows "
            "FROM uploads u ORDER BY started_at"
        )
    return [tuple(row) for row in found]
