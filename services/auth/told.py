"""What of the news each watcher of the trust feed is told.

Keys and revocations go to all: whoever takes tokens needs them. Grants go to the
service that judges them, by the kind of their resource. Signers and releases go to
our own services alone: another team's service has no use for them, and they name
who supplies data and which models there are.

If this fails: a service learns names of resources that are not its own; or it lacks
a grant, and refuses.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from casemate.gate.core.grants import GrantIndex
from casemate.gate.core.records import Grant, Release, RemovedSigner, TrustChange
from casemate.signing.signers import Signer
from services.auth.scopes import Audiences
from services.auth.store.news import News


def told_to(service: str, news: News, audiences: Audiences) -> News:
    """The part of the news that a service is told; numbers and age stay as they are."""
    kinds = audiences.kinds_of(service)
    ours = service not in audiences.others
    snapshot = news.snapshot
    if snapshot is not None:
        snapshot = replace(
            snapshot,
            grants=GrantIndex.of(grant for grant in snapshot.grants.by_id.values() if _kind(grant) in kinds),
            signers=snapshot.signers if ours else MappingProxyType({}),
            releases=snapshot.releases if ours else MappingProxyType({}),
        )
    return replace(
        news,
        snapshot=snapshot,
        changes=tuple(change for change in news.changes if _concerns(change, kinds=kinds, ours=ours)),
    )


def _concerns(change: TrustChange, *, kinds: frozenset[str], ours: bool) -> bool:
    match change:
        case Grant():
            return _kind(change) in kinds
        case Signer() | RemovedSigner() | Release():
            return ours
        case _:
            return True  # of a grant that goes, only its identifier is known: it says nothing to others


def _kind(grant: Grant) -> str:
    return grant.resource.partition("/")[0]
