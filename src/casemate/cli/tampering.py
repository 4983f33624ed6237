"""What a superuser of PostgreSQL can do to us by SQL, for the demo."""

from __future__ import annotations

import asyncio
import uuid

from casemate.cli.database import connect_as_superuser
from casemate.cli.state import StateDirectory


def swap_two_rows(state: StateDirectory) -> None:
    """Swaps the sealed bytes of the first two rows of the dataset. Done twice, it is undone."""

    async def swap() -> None:
        async with connect_as_superuser(state, "casemate_datasets") as connection, connection.transaction():
            first, second = await connection.fetch(
                "SELECT upload, batch, ordinal, sealed FROM sealed_rows ORDER BY upload, batch, ordinal LIMIT 2"
            )
            for place, row in ((first, second), (second, first)):
                await connection.execute(
                    "UPDATE sealed_rows SET sealed = $4 WHERE upload = $1 AND batch = $2 AND ordinal = $3",
                    place["upload"],
                    place["batch"],
                    place["ordinal"],
                    row["sealed"],
                )

    asyncio.run(swap())


def insert_grant(state: StateDirectory, *, tenant: str, caller: str, verb: str, resource: str) -> str:
    """Inserts a grant whose MAC is copied from a good one, and announces it as auth would."""
    identifier = str(uuid.uuid4())

    async def insert() -> None:
        async with connect_as_superuser(state, "casemate_auth") as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO access_grant (id, tenant, caller, verb, resource, effect, mac) "
                "SELECT $1, $2, $3, $4, $5, 'allow', mac FROM access_grant LIMIT 1",
                identifier,
                tenant,
                caller,
                verb,
                resource,
            )
            await connection.execute("UPDATE trust_head SET sequence = sequence + 1")
            await connection.execute(
                "INSERT INTO trust_event (sequence, kind, record_key) "
                "SELECT sequence, 'grant', ARRAY[$1] FROM trust_head",
                identifier,
            )
            await connection.execute("SELECT pg_notify('casemate_trust', '')")

    asyncio.run(insert())
    return identifier


def remove_grant(state: StateDirectory, identifier: str) -> None:
    """Removes the inserted grant again."""

    async def remove() -> None:
        async with connect_as_superuser(state, "casemate_auth") as connection:
            await connection.execute("DELETE FROM access_grant WHERE id = $1", identifier)

    asyncio.run(remove())
