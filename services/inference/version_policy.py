"""Which released versions of a model stay loaded: the latest, all, or specific ones. The operator's choice.

    latest:2                                  the two newest of every model
    latest:1 acme/digits=all acme/iris=1,3    and otherwise for two models

A policy says what is loaded, never what may be served: that is the release's
word. Nor does it choose what a request without a version gets: that is the
version that the operator labelled `stable`, else the newest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from services.inference.names import is_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_LATEST = re.compile(r"latest:([1-9][0-9]{0,3})", re.ASCII)
_NUMBERS = re.compile(r"[1-9][0-9]{0,17}(,[1-9][0-9]{0,17}){0,63}", re.ASCII)
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions stay loaded.

    Attributes:
        latest: how many of the newest.
        specific: these and no others, where any are named.
    """

    latest: int = 2
    specific: frozenset[int] = frozenset()

    @property
    def all(self) -> bool:
        """Whether every version stays loaded."""
        return not self.specific and self.latest == _MOST

    def choose(self, numbers: Collection[int]) -> list[int]:
        """Those of the released numbers that stay loaded, newest first."""
        newest_first = sorted(numbers, reverse=True)
        if self.specific:
            return [number for number in newest_first if number in self.specific]
        return newest_first[: self.latest]


@dataclass(frozen=True, slots=True)
class VersionPolicies:
    """The policy of every model: one for all, and what differs by tenant and model."""

    default: VersionPolicy = field(default_factory=VersionPolicy)
    by_model: Mapping[tuple[str, str], VersionPolicy] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, tenant: str, model: str) -> VersionPolicy:
        """The policy of one model."""
        return self.by_model.get((tenant, model), self.default)


def version_policies(text: str) -> VersionPolicies:
    """Parses policies separated by spaces: the first for every model, the others `tenant/model=policy`.

    Raises:
        ValueError: it is none, or names a model twice.
    """
    default, *others = text.split()[:1024] or [""]
    by_model: dict[tuple[str, str], VersionPolicy] = {}
    for other in others:
        name, _, policy = other.partition("=")
        tenant, _, model = name.partition("/")
        if not (is_name(tenant) and is_name(model)) or (tenant, model) in by_model:
            raise ValueError("must name each model once, as tenant/model=policy")
        by_model[tenant, model] = _policy(policy)
    return VersionPolicies(_policy(default), MappingProxyType(by_model))


def _policy(text: str) -> VersionPolicy:
    if text == "all":
        return VersionPolicy(latest=_MOST)
    if match := _LATEST.fullmatch(text):
        return VersionPolicy(latest=int(match[1]))
    if _NUMBERS.fullmatch(text):
        return VersionPolicy(specific=frozenset(map(int, text.split(","))))
    raise ValueError("a policy is latest:N, all, or numbers separated by commas")
