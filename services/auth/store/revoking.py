"""Revocations as a part of other changes: said once, told in the same transaction."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.gate.core.records import Revocation, RevocationKind
from services.auth.store.changes import Change, EventKind
from services.auth.store.tables import AuthorityTables

if TYPE_CHECKING:
    from casemate.storage.pool import Connection

_SIGNED_WITHIN: Final = timedelta(minutes=1)
TOKENS_ARE_DEAD_AFTER: Final = timedelta(minutes=5) + _SIGNED_WITHIN
"""One token life, and a minute for one that is being signed at this moment."""


async def add_revocation(
    tables: AuthorityTables, change: Change, revocation: Revocation, *, extend: bool = False
) -> str:
    """Adds a revocation and returns its identifier: an earlier one's, where that says the same.

    With `extend`, an earlier one of a token or session that ends sooner does not say the same.
    """
    same_kind = await tables.revocations.matching(change.connection, kind=revocation.kind.value, value=revocation.value)
    for earlier in same_kind:
        if _covers(earlier, revocation, extend=extend):
            return earlier.id
    await tables.revocations.insert(change.connection, revocation)
    await change.tell(EventKind.REVOCATION, revocation.id)
    return revocation.id


async def revoke_clients_of(tables: AuthorityTables, change: Change, spiffe_id: str, *, now: datetime) -> None:
    """Revokes what the clients of a SPIFFE ID hold and what others hold by them: tokens do not say a SPIFFE ID."""
    for client in await tables.clients.matching(change.connection, spiffe_id=spiffe_id):
        revocation = Revocation(
            id=f"revocation-{secrets.token_hex(12)}",
            kind=RevocationKind.CLIENT,
            value=client.client_id,
            not_before=now + _SIGNED_WITHIN,
            expires_at=now + TOKENS_ARE_DEAD_AFTER,
        )
        await add_revocation(tables, change, revocation)


async def covering(tables: AuthorityTables, connection: Connection, revocation: Revocation) -> str | None:
    """The identifier of an earlier revocation that says the same; asked without the lock of changes."""
    same = await tables.revocations.matching(connection, kind=revocation.kind.value, value=revocation.value)
    return next((earlier.id for earlier in same if _covers(earlier, revocation, extend=False)), None)


def _covers(earlier: Revocation, later: Revocation, *, extend: bool) -> bool:
    """Whether an earlier revocation of the same value already refuses all that the later one would."""
    if later.kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT):
        return False  # the later moment reaches tokens that were issued in between
    if earlier.expires_at is None:
        return True
    # Repeating the revocation of one token or session adds nothing: none of its tokens outlives the first one's expiry.
    repeated = later.kind in (RevocationKind.TOKEN, RevocationKind.SESSION) and not extend
    return later.expires_at is not None and (earlier.expires_at >= later.expires_at or repeated)
