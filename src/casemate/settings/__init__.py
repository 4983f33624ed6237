"""Settings: frozen, typed, read once at start from the environment and from secret files.

A component declares a frozen dataclass whose fields are made by `setting`, and
may hold other such dataclasses. `load_settings` fills it or says everything that
is wrong in one `ConfigurationError`. After that nothing reads the environment.

If this fails: a process starts with a default where the operator meant something
stricter; the TLS floor and the database's TLS do not depend on any setting.
"""

from __future__ import annotations

from casemate.settings.declaration import nested, setting
from casemate.settings.groups import DatabaseSettings, IdentitySettings, ListenSettings, TrustSettings
from casemate.settings.loader import COMPONENTS, load_settings
from casemate.settings.parsers import address, boolean, duration, integer, path, port, secret, text, trust_domain

__all__ = [
    "COMPONENTS",
    "DatabaseSettings",
    "IdentitySettings",
    "ListenSettings",
    "TrustSettings",
    "address",
    "boolean",
    "duration",
    "integer",
    "load_settings",
    "nested",
    "path",
    "port",
    "secret",
    "setting",
    "text",
    "trust_domain",
]
