"""Revocations as a part of other changes: said once, told in the same transaction."""

from __future__ import annotations

from casemate.gate.core.records import Revocation, RevocationKind
from services.auth.store.changes import Change, EventKind
from services.auth.store.tables import AuthorityTables


async def add_revocation(tables: AuthorityTables, change: Change, revocation: Revocation) -> str:
    """Adds a revocation and returns its identifier: an earlier one's, where that says the same."""
    same_kind = await tables.revocations.matching(change.connection, kind=revocation.kind.value, value=revocation.value)
    for earlier in same_kind:
        if _covers(earlier, revocation):
            return earlier.id
    await tables.revocations.insert(change.connection, revocation)
    await change.tell(EventKind.REVOCATION, revocation.id)
    return revocation.id


def _covers(earlier: Revocation, later: Revocation) -> bool:
    """Whether an earlier revocation of the same value already refuses all that the later one would."""
    if later.kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT):
        return False  # the later moment reaches tokens that were issued in between
    if earlier.expires_at is None:
        return True
    # Repeating the revocation of one token adds nothing: no token outlives the first one's expiry.
    return later.expires_at is not None and (
        earlier.expires_at >= later.expires_at or later.kind is RevocationKind.TOKEN
    )
