"""Which services tokens are for, and which scopes mean anything there.

Besides our three there are those of other teams, which the operator names. Each has
its own scopes and its own kind of resource, called as itself; neither can be one of ours.

If this fails: a token is issued for a service that is not there, and nobody takes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

SCOPES_BY_AUDIENCE: Final = MappingProxyType(
    {
        "auth": frozenset({"admin", "reflection"}),
        "datasets": frozenset({"admin", "datasets.write", "datasets.read", "log.read", "reflection"}),
        "inference": frozenset({"admin", "models.infer", "models.publish", "reflection"}),
    }
)
"""Audiences that exist, each with the scopes that its methods ask for."""

SCOPES: Final = frozenset().union(*SCOPES_BY_AUDIENCE.values())
"""Every scope of ours."""

KINDS_BY_AUDIENCE: Final = MappingProxyType(
    {"auth": frozenset[str](), "datasets": frozenset({"dataset"}), "inference": frozenset({"model"})}
)
"""What kinds of resource a service judges grants on."""

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SCOPE: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_TAKEN: Final = frozenset({*SCOPES_BY_AUDIENCE, "casemate", "dataset", "model"})


class Audiences:
    """The services that tokens may be for: ours, and those of other teams.

    Args:
        others: scopes of other teams' services, by the name in their certificate (`/svc/<name>`).
    """

    def __init__(self, others: Mapping[str, frozenset[str]] = MappingProxyType({})) -> None:
        self.others = MappingProxyType(dict(others))
        self._scopes = {**SCOPES_BY_AUDIENCE, **others}

    def __contains__(self, name: object) -> bool:
        return name in self._scopes

    def scopes_of(self, name: str) -> frozenset[str]:
        """The scopes of a service; none if there is no such service."""
        return self._scopes.get(name, frozenset())

    def kinds_of(self, name: str) -> frozenset[str]:
        """The kinds of resource that a service judges grants on: of another team's, the one called as itself."""
        return frozenset({name}) if name in self.others else KINDS_BY_AUDIENCE.get(name, frozenset())

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope that exists."""
        return frozenset[str]().union(*self._scopes.values())

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind of resource that exists."""
        return frozenset[str]().union(*map(self.kinds_of, self._scopes))

    @property
    def names(self) -> Iterable[str]:
        """All names, sorted."""
        return sorted(self._scopes)


def audiences(value: str) -> Audiences:
    """Other teams' services, as a setting: `greeter=greetings.read,greetings.write;billing=bills.read`.

    Raises:
        ValueError: not of that form, or a name that is ours.
    """
    others: dict[str, frozenset[str]] = {}
    for entry in filter(None, value.split(";")):
        name, _, listed = entry.strip().partition("=")
        scopes = frozenset(listed.split(","))
        if not _NAME.fullmatch(name) or name in _TAKEN or name in others:
            raise ValueError("must name other teams' services, each once, as in greeter=greetings.read")
        if not all(_SCOPE.fullmatch(scope) and scope not in SCOPES for scope in scopes):
            raise ValueError("must give each service scopes of its own, as in greeter=greetings.read,greetings.write")
        others[name] = scopes
    return Audiences(others)


OURS: Final = Audiences()
