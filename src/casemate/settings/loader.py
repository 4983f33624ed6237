"""Fills settings dataclasses from an environment, and reports every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, get_type_hints, runtime_checkable

from casemate.errors import ConfigurationError
from casemate.settings.declaration import METADATA_KEY, Nested, Setting
from casemate.settings.parsers import secret
from casemate.settings.secret_file import FileSecret, read_secret_file

S = TypeVar("S")

COMPONENTS: Final = ("auth", "datasets", "inference")
"""Components that may share one environment; each ignores the names of the others."""

_PREFIX: Final = "CASEMATE_"
_ALWAYS_KNOWN: Final = frozenset(
    {"CASEMATE_TRUST_DOMAIN", "CASEMATE_TRUST_POST_QUANTUM", "CASEMATE_TRUST_STALENESS", "CASEMATE_VECTORS"}
)
_FORBIDDEN: Final = {
    "GRPC_TRACE": "gRPC would write what it sends and receives to the log",
    "SSLKEYLOGFILE": "TLS session keys would be written to a file",
}
# Variables that Kubernetes sets for each Service of a namespace, such as one called casemate-auth.
_LINK_NAME: Final = re.compile(
    r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://\S+", re.ASCII)


def load_settings(cls: type[S], environment: Mapping[str, str], *, component: str) -> S:
    """An instance of the settings dataclass `cls`, filled from `environment`.

    Variables are named `CASEMATE_<COMPONENT>_<NAME>`, the shared ones `CASEMATE_<NAME>`.

    Raises:
        ConfigurationError: names every problem, one a line: a setting that is
            missing, malformed or given twice; a secret file that others can read; a
            `CASEMATE_` name that no setting has; a variable that makes libraries
            write secrets down. Values are never repeated.
    """
    reader = _Reader(environment, component)
    settings = reader.read(cls, "")
    problems = [
        *(f"{name}: must not be set: {why}" for name, why in _FORBIDDEN.items() if environment.get(name)),
        *reader.problems,
        *_unknown(environment, component, reader.known),
    ]
    if problems:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigurationError(f"{count} in the settings of {component}:\n  " + "\n  ".join(problems))
    if settings is None:
        raise ConfigurationError(f"the settings of {component} could not be read")
    return settings


def _unknown(environment: Mapping[str, str], component: str, known: set[str]) -> list[str]:
    others = tuple(_component_prefix(other) for other in COMPONENTS if other != component)
    problems = []
    for name in sorted(environment):
        if not name.startswith(_PREFIX) or name in known | _ALWAYS_KNOWN or name.startswith(others):
            continue
        if _is_service_link(name, environment[name]):
            continue
        nearest = difflib.get_close_matches(name, known | _ALWAYS_KNOWN, n=1)
        problems.append(f"{name}: no such setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return problems


def _is_service_link(name: str, value: str) -> bool:
    # `<SERVICE>_PORT` is also what a mistyped setting may look like, so there the value decides.
    if name.endswith("_PORT") and not name.endswith("_SERVICE_PORT"):
        return _LINK_VALUE.fullmatch(value) is not None
    return _LINK_NAME.fullmatch(name) is not None


def _component_prefix(component: str) -> str:
    return f"{_PREFIX}{component.upper().replace('-', '_')}_"


@runtime_checkable
class Checked(Protocol):
    """Settings that can tell what is wrong with them together, in the names that the operator used."""

    def problems(self, prefix: str) -> list[str]:
        """What is wrong, each in one line; `prefix` goes before the names of the settings."""
        ...


class _Reader:
    """Walks a settings dataclass and collects names and problems on the way."""

    def __init__(self, environment: Mapping[str, str], component: str) -> None:
        self.problems: list[str] = []
        self.known: set[str] = set()
        self._environment = environment
        self._component = component

    def read(self, cls: type[S], prefix: str) -> S | None:
        """An instance of `cls`, or None if there were problems in it."""
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls.__name__} is not a settings dataclass")
        before = len(self.problems)
        types = get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            declared = field.metadata.get(METADATA_KEY)
            if isinstance(declared, Setting):
                values[field.name] = self._read_setting(declared, prefix)
            elif isinstance(declared, Nested):
                values[field.name] = self.read(types[field.name], prefix + declared.prefix)
            else:
                values[field.name] = self.read(types[field.name], prefix)
        if len(self.problems) > before:
            return None
        try:
            made = cls(**values)
        except ConfigurationError as error:
            self.problems.append(f"{_component_prefix(self._component)}{prefix}…: {cls.__name__}: {error}")
            return None
        checked: object = made
        if isinstance(checked, Checked):
            self.problems += checked.problems(_component_prefix(self._component) + prefix)
        return made

    def _read_setting(self, declared: Setting, prefix: str) -> object:
        start = _PREFIX if declared.shared else _component_prefix(self._component) + prefix
        name = start + declared.name
        self.known.add(name)
        file_name = f"{name}_FILE" if declared.parse is secret else None
        if file_name is not None:
            self.known.add(file_name)
        try:
            given = self._find(name, file_name)
            if isinstance(given, FileSecret):
                return given
            if given is not None:
                parsed: object = declared.parse(given)
                return parsed
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
            return None
        if declared.is_required:
            also = f" (or {file_name})" if file_name is not None else ""
            self.problems.append(f"{name}{also}: required: {declared.help}")
            return None
        return declared.default_for(self._component)

    def _find(self, name: str, file_name: str | None) -> str | FileSecret | None:
        given = self._environment.get(name)
        file = self._environment.get(file_name) if file_name is not None else None
        if given is not None and file is not None:
            raise ValueError(f"given twice, here and by {file_name}")
        if file is not None:
            return FileSecret(read_secret_file(Path(file)), file=Path(file))
        if given == "":
            raise ValueError("is empty; unset it or give a value")
        if given is not None and _LINK_VALUE.fullmatch(given):
            raise ValueError("holds a Kubernetes service link; set enableServiceLinks to false in the pod")
        return given
