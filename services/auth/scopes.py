"""Which services tokens are for, and which scopes mean anything there."""

from __future__ import annotations

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
"""Every scope that exists."""
