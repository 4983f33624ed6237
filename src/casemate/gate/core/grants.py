"""Who may do what to which resource of a tenant.

If this fails: a caller with the right scope reaches a resource of its own tenant
that nobody gave it; other tenants' resources stay out of reach, because handlers
look names up inside the caller's tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.errors import NotFound
from casemate.gate.core.records import Effect, Grant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

_ANY = "*"


@dataclass(frozen=True, slots=True)
class _TenantGrants:
    """The grants of one tenant: those of one named resource by its name, and those of patterns."""

    exact: Mapping[str, tuple[Grant, ...]]
    patterns: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class GrantIndex:
    """Live grants, found by the tenant whose resources they are about."""

    by_id: Mapping[str, Grant]
    _by_tenant: Mapping[str, _TenantGrants]

    @classmethod
    def empty(cls) -> GrantIndex:
        """No grants: nothing is allowed."""
        return cls.of(())

    @classmethod
    def of(cls, grants: Iterable[Grant]) -> GrantIndex:
        """An index of these; of two with one identifier the later counts."""
        by_id = {grant.id: grant for grant in grants}
        tenants: dict[str, list[Grant]] = {}
        for grant in by_id.values():
            tenants.setdefault(grant.tenant, []).append(grant)
        return cls(
            MappingProxyType(by_id),
            MappingProxyType({tenant: _of_tenant(members) for tenant, members in tenants.items()}),
        )

    def with_grant(self, grant: Grant) -> GrantIndex:
        """This index with one grant added, or replaced by identifier."""
        return GrantIndex.of([*self.by_id.values(), grant])

    def without_grant(self, grant_id: str) -> GrantIndex:
        """This index without the grant of that identifier."""
        return GrantIndex.of(grant for grant in self.by_id.values() if grant.id != grant_id)

    def authorize(self, *, tenant: str, caller_path: str, verb: str, resource: str, now: datetime) -> None:
        """Refuses unless a live grant gives `verb` on `resource` and none takes it.

        Args:
            tenant: the tenant whose resource it is.
            caller_path: path of the caller's SPIFFE ID, `t/acme/trainer`.
            verb: what the method does.
            resource: path of the resource, `dataset/digits`.
            now: when it is done.

        Raises:
            NotFound: the same as for a resource that does not exist.
        """
        allowed = False
        for grant in self._candidates(tenant, resource):
            if grant.expires_at is not None and now >= grant.expires_at:
                continue
            if grant.verb not in (verb, _ANY) or not matches_resource(grant.resource, resource):
                continue
            if not matches_caller(grant, caller_path):
                continue
            if grant.effect is not Effect.ALLOW:
                allowed = False
                break
            allowed = True
        if not allowed:
            raise NotFound(f"no grant of {verb} on {resource} in {tenant}")

    def _candidates(self, tenant: str, resource: str) -> Iterator[Grant]:
        members = self._by_tenant.get(tenant)
        if members is not None:
            yield from members.exact.get(resource, ())
            yield from members.patterns


def matches_resource(pattern: str, resource: str) -> bool:
    """Whether a pattern means this resource: segment by segment, `*` standing for one whole segment."""
    return pattern == resource or (_ANY in pattern and _same_segments(pattern, resource))


def matches_caller(grant: Grant, caller_path: str) -> bool:
    """Whether a grant means this caller.

    Callers of another tenant, and services, are meant only by their exact path:
    a pattern reaches no further than its own tenant's callers. A denial reaches
    everybody that its pattern matches.
    """
    if grant.caller == caller_path:
        return True
    own = caller_path.startswith(f"t/{grant.tenant}/")
    return (own or grant.effect is not Effect.ALLOW) and _same_segments(grant.caller, caller_path)


def _same_segments(pattern: str, path: str) -> bool:
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(want in (_ANY, part) for want, part in zip(wanted, given, strict=True))


def _of_tenant(grants: Iterable[Grant]) -> _TenantGrants:
    exact: dict[str, tuple[Grant, ...]] = {}
    patterns: list[Grant] = []
    for grant in grants:
        if _ANY in grant.resource:
            patterns.append(grant)
        else:
            exact[grant.resource] = (*exact.get(grant.resource, ()), grant)
    return _TenantGrants(MappingProxyType(exact), tuple(patterns))
