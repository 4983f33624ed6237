"""Changes of clients, each a part of one transaction: registered, disabled, enabled again.

`within` is as in `authority`.

If this fails: who was disabled gets tokens again. Each change is audited, and told to the
transparency log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from casemate.errors import AlreadyExists, FieldViolation, NotFound
from casemate.gate.core.records import Revocation, RevocationKind
from services.auth.records import Client
from services.auth.store.changes import Change, EventKind
from services.auth.store.families import end_families
from services.auth.store.revoking import add_revocation
from services.auth.store.tables import AuthorityTables


async def add_client(tables: AuthorityTables, change: Change, client: Client, *, within: str | None) -> None:
    """Adds a client.

    Raises:
        AlreadyExists: names what is taken, as far as it is taken by clients within reach.
    """
    try:
        await tables.clients.insert(change.connection, client)
    except AlreadyExists as error:
        raise AlreadyExists(str(error), violations=await _taken(tables, change, client, within)) from None
    await change.tell(EventKind.CLIENT, client.client_id)


async def disable_client(
    tables: AuthorityTables,
    change: Change,
    client_id: str,
    *,
    within: str | None,
    revocations: Sequence[Revocation],
    now: datetime,
) -> None:
    """Disables a client and revokes what it holds; again is no error. Raises NotFound: not within reach."""
    client = await _reached(tables, change, client_id, within)
    if client.enabled:
        await tables.clients.replace(change.connection, replace(client, enabled=False))
        await change.tell(EventKind.CLIENT, client_id)
    await end_families(tables, change, now=now, client_id=client_id)
    for revocation in revocations:
        await add_revocation(tables, change, revocation)


async def enable_client(
    tables: AuthorityTables, change: Change, client_id: str, *, within: str | None, now: datetime
) -> datetime | None:
    """Lets a client have tokens again; again is no error. No revocation is taken back: what it held stays dead.

    Returns:
        Up to when what is issued to it is dead at birth; None if it is not.

    Raises:
        NotFound: not within reach.
    """
    client = await _reached(tables, change, client_id, within)
    if not client.enabled:
        await tables.clients.replace(change.connection, replace(client, enabled=True))
        await change.tell(EventKind.CLIENT, client_id)
    ahead = []
    for kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT):
        found = await tables.revocations.matching(change.connection, kind=kind.value, value=client_id)
        ahead += [one.not_before for one in found if one.not_before is not None and one.not_before > now]
    return max(ahead, default=None)


async def _reached(tables: AuthorityTables, change: Change, client_id: str, within: str | None) -> Client:
    client = await tables.clients.get(change.connection, client_id)
    if client is None or within not in (None, client.tenant):
        raise NotFound(f"client {client_id}")
    return client


async def _taken(
    tables: AuthorityTables, change: Change, client: Client, within: str | None
) -> tuple[FieldViolation, ...]:
    """The fields of a client that another one has, of those that whoever asks may list anyway."""
    named = await tables.clients.matching(change.connection, client_id=client.client_id)
    proven = await tables.clients.matching(change.connection, spiffe_id=client.spiffe_id, authentication="certificate")
    found = []
    if any(within in (None, other.tenant) for other in named):
        found.append(FieldViolation("client.client_id", "is taken"))
    if client.authentication == "certificate" and any(within in (None, other.tenant) for other in proven):
        found.append(FieldViolation("client.spiffe_id", "is another client's, which proves itself by it alone"))
    return tuple(found)
