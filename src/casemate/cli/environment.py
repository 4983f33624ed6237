"""What the environment of a cluster on this machine may not hold."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.errors import ConfigurationError

HARMLESS = frozenset({"CASEMATE_VECTORS"})
"""Ours, and not a setting: where tests find their vectors."""

REVEALING = ("GRPC_TRACE", "SSLKEYLOGFILE")
"""Would write tokens, or the keys of connections, where others read."""


def require_unset(environment: Mapping[str, str]) -> None:
    """Refuses settings that would be ignored, and variables that would reveal secrets.

    A cluster on one machine is told everything by its supervisor: a setting in the
    environment would look as if it counted.

    Raises:
        ConfigurationError: names all of them.
    """
    ignored = sorted(name for name in environment if name.startswith("CASEMATE_") and name not in HARMLESS)
    problems = [f"{name} has no effect here: a cluster on this machine sets everything itself" for name in ignored]
    problems += [f"{name} would reveal secrets" for name in REVEALING if environment.get(name)]
    if problems:
        raise ConfigurationError("; ".join(problems) + "; unset " + ("them" if len(problems) > 1 else "it"))
