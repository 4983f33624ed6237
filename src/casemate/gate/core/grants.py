"""Who may do what to which resource of a tenant.

If this fails: a caller with the right scope reaches a resource of its own tenant
that nobody gave it; other tenants' resources stay out of reach, because handlers
look names up inside the caller's tenant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from casemate.errors import NotFound
from casemate.gate.core.records import Effect, Grant

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

_ANY = "*"
_FOUND_AT_MOST = 4096


@dataclass(frozen=True, slots=True)
class _Rule:
    """A grant with its patterns taken apart once."""

    grant: Grant
    caller: tuple[str, ...]
    resource: tuple[str, ...]

    def means(self, caller: tuple[str, ...], verb: str, resource: tuple[str, ...]) -> bool:
        """Whether the rule is about this; whether it is still alive, only a clock can say."""
        grant = self.grant
        if grant.verb not in (verb, _ANY) or not _matches(self.resource, resource):
            return False
        if self.caller == caller:
            return True
        # A pattern gives nothing beyond its own tenant's callers; a denial reaches everybody whom it matches.
        own = caller[:2] == ("t", grant.tenant)
        return (own or grant.effect is not Effect.ALLOW) and _matches(self.caller, caller)


@dataclass(frozen=True, slots=True)
class _TenantRules:
    """The rules of one tenant: those of one named resource by its path, and those of patterns."""

    exact: MappingProxyType[str, tuple[_Rule, ...]]
    patterns: tuple[_Rule, ...]

    def with_grant(self, grant: Grant) -> _TenantRules:
        """These and the rule of one more grant."""
        rule = _rule(grant)
        if _ANY in rule.resource:
            return _TenantRules(self.exact, (*self.patterns, rule))
        found = (*self.exact.get(grant.resource, ()), rule)
        return _TenantRules(MappingProxyType(self.exact | {grant.resource: found}), self.patterns)

    def without_grant(self, grant: Grant) -> _TenantRules:
        """These without the rule of a grant that is among them."""
        if _ANY in _rule(grant).resource:
            return _TenantRules(self.exact, tuple(rule for rule in self.patterns if rule.grant.id != grant.id))
        exact = self.exact.copy()
        left = tuple(rule for rule in exact.pop(grant.resource) if rule.grant.id != grant.id)
        if left:
            exact[grant.resource] = left
        return _TenantRules(MappingProxyType(exact), self.patterns)


_NO_RULES: Final = _TenantRules(MappingProxyType({}), ())


@dataclass(frozen=True, slots=True)
class GrantIndex:
    """Live grants, found by the tenant whose resources they are about."""

    by_id: MappingProxyType[str, Grant]
    _by_tenant: MappingProxyType[str, _TenantRules]
    # What patterns mean does not change within an index, so it is found once for what is asked often. Never a
    # decision: whether a grant has expired is judged on every call.
    _found: dict[tuple[str, str, str, str], tuple[Grant, ...]] = field(default_factory=dict, compare=False, repr=False)

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
        """This index with one grant added, or replaced by identifier. Costs a copy of the maps, not their making."""
        before = self.without_grant(grant.id)
        rules = before._by_tenant.get(grant.tenant, _NO_RULES).with_grant(grant)
        by_tenant = MappingProxyType(before._by_tenant | {grant.tenant: rules})
        return GrantIndex(MappingProxyType(before.by_id | {grant.id: grant}), by_tenant)

    def without_grant(self, grant_id: str) -> GrantIndex:
        """This index without the grant of that identifier. Costs as `with_grant`."""
        grant = self.by_id.get(grant_id)
        if grant is None:
            return self
        by_id = self.by_id.copy()
        del by_id[grant_id]
        by_tenant = self._by_tenant.copy()
        rules = by_tenant.pop(grant.tenant).without_grant(grant)
        if rules != _NO_RULES:
            by_tenant[grant.tenant] = rules
        return GrantIndex(MappingProxyType(by_id), MappingProxyType(by_tenant))

    def authorize(
        self, *, tenant: str, caller_path: str, verb: str, resource: str, now: datetime, whole: str | None = None
    ) -> None:
        """Refuses unless a live grant gives `verb` on `resource` and none takes it.

        Args:
            tenant: the tenant whose resource it is.
            caller_path: path of the caller's SPIFFE ID, `t/acme/trainer`.
            verb: what the method does.
            resource: path of the resource, `dataset/digits`.
            now: when it is done.
            whole: path of what the resource is a version of: a grant on either gives, a denial of either takes.

        Raises:
            NotFound: the same as for a resource that does not exist.
        """
        allowed = False
        grants = self._found.get((tenant, caller_path, verb, resource))
        if grants is None:
            grants = self._find(tenant, caller_path, verb, resource)
        if whole is not None:
            grants += self._find(tenant, caller_path, verb, whole)
        for grant in grants:
            if grant.expires_at is not None and now >= grant.expires_at:
                continue
            allowed = grant.effect is Effect.ALLOW
            if not allowed:
                break
        if not allowed:
            raise NotFound(f"no grant of {verb} on {resource} in {tenant}")

    def _find(self, tenant: str, caller_path: str, verb: str, resource: str) -> tuple[Grant, ...]:
        """All grants that are about this, alive or not."""
        path, wanted = tuple(caller_path.split("/")), tuple(resource.split("/"))
        grants = tuple(rule.grant for rule in self._candidates(tenant, resource) if rule.means(path, verb, wanted))
        # Names that nobody gave anybody are a caller's to make up, and are not kept; of the others only so many.
        if grants:
            if len(self._found) >= _FOUND_AT_MOST:
                self._found.clear()
            self._found[tenant, caller_path, verb, resource] = grants
        return grants

    def _candidates(self, tenant: str, resource: str) -> tuple[_Rule, ...]:
        rules = self._by_tenant.get(tenant)
        return rules.exact.get(resource, ()) + rules.patterns if rules is not None else ()


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether a pattern means this path: segment by segment, `*` standing for one whole segment."""
    if pattern == path:
        return True
    if len(pattern) != len(path):
        return False
    for want, part in zip(pattern, path, strict=True):  # noqa: SIM110  # `all` over a generator costs twice as much
        if want != part and want != _ANY:  # noqa: PLR1714  # likewise a tuple
            return False
    return True


def _rule(grant: Grant) -> _Rule:
    return _Rule(grant, tuple(grant.caller.split("/")), tuple(grant.resource.split("/")))


def _of_tenant(grants: Iterable[Grant]) -> _TenantRules:
    exact: dict[str, tuple[_Rule, ...]] = {}
    patterns: list[_Rule] = []
    for grant in grants:
        rule = _rule(grant)
        if _ANY in rule.resource:
            patterns.append(rule)
        else:
            exact[grant.resource] = (*exact.get(grant.resource, ()), rule)
    return _TenantRules(MappingProxyType(exact), tuple(patterns))
