"""How a dataclass says which environment variable fills a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")
D = TypeVar("D")

METADATA_KEY: Final = "casemate.settings"
_REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Setting:
    """What `setting` leaves in the field's metadata for the loader."""

    name: str
    parse: Callable[[str], Any]
    help: str
    shared: bool
    per_component: Mapping[str, Any]
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is _REQUIRED

    def default_for(self, component: str) -> object:
        """The value when the variable is not set."""
        return self.per_component.get(component, self.default)


@dataclass(frozen=True, slots=True)
class Nested:
    """What `nested` leaves in the field's metadata for the loader."""

    prefix: str


@overload
def setting(
    name: str,
    *,
    parse: Callable[[str], T],
    help: str,
    shared: bool = ...,
    per_component: Mapping[str, T] | None = ...,
) -> T: ...
@overload
def setting(
    name: str,
    *,
    parse: Callable[[str], T],
    default: D,
    help: str,
    shared: bool = ...,
    per_component: Mapping[str, T] | None = ...,
) -> T | D: ...
def setting(
    name: str,
    *,
    parse: Callable[[str], Any],
    default: Any = _REQUIRED,
    help: str,  # noqa: A002  # the word that every option parser uses
    shared: bool = False,
    per_component: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that is filled from one environment variable.

    Args:
        name: the variable's name after `CASEMATE_<COMPONENT>_`, or after
            `CASEMATE_` if `shared`. A field parsed by `secret` may come from a
            file instead, named by `<name>_FILE`.
        parse: text to value; raises ValueError with constant text, since the
            text may be a secret pasted into the wrong variable.
        default: the value when the variable is not set; without it the setting is required.
        help: one line for the operator, shown when the setting is missing.
        shared: the variable is the same for all components.
        per_component: defaults that differ by component; `default` serves the others.
    """
    metadata = {METADATA_KEY: Setting(name, parse, help, shared, dict(per_component or {}), default)}
    if default is _REQUIRED:
        return field(kw_only=True, metadata=metadata)
    # A factory, since dataclasses take an unhashable default, such as a Secret, for a mutable one.
    return field(kw_only=True, metadata=metadata, default_factory=lambda: default)


def nested(prefix: str = "") -> Any:  # noqa: ANN401  # stands where the nested type is annotated, as `field` does
    """A dataclass field that is itself a settings dataclass, with `prefix` before each of its names.

    A field of a dataclass type without any declaration is nested with no prefix.
    """
    return field(kw_only=True, metadata={METADATA_KEY: Nested(prefix)})
