"""What is loaded now, and which version a request means.

Readers see one immutable map; changes replace it under a lock. `current`, what
a request without a version gets, moves only to the newest trusted release: a
newer version that cannot be loaded leaves the running one in place, and at a
cold start it leaves nothing, so spoiling a file does not bring an older model
back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.errors import FailedPrecondition, NotFound
from services.inference.names import parse_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.inference.loader import LoadedModel
    from services.inference.trust_view import TrustView

ModelKey = tuple[str, str]
"""Tenant and model."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The loaded versions of one model.

    Attributes:
        current: the number that a request without one gets; None when none may be.
        unloaded: an operator took it out; it comes back by a load alone.
    """

    versions: Mapping[int, LoadedModel] = field(default_factory=lambda: MappingProxyType({}))
    current: int | None = None
    unloaded: bool = False


_EMPTY = Entry()


class Catalogue:
    """The loaded models of all tenants."""

    def __init__(self, trust: TrustView) -> None:
        self._trust = trust
        self._lock = threading.Lock()
        self._entries: Mapping[ModelKey, Entry] = MappingProxyType({})

    def entry(self, key: ModelKey) -> Entry:
        """What is loaded of a model; empty when nothing is."""
        return self._entries.get(key, _EMPTY)

    def models(self) -> tuple[ModelKey, ...]:
        """Every model of which something is or was loaded."""
        return tuple(self._entries)

    def find(self, tenant: str, model: str, version: str) -> LoadedModel:
        """The loaded version that a request means: by number, by label, or the current one for no text.

        Raises:
            NotFound: the model or the version was never released.
            FailedPrecondition: reason MODEL_NOT_READY: released, but not loaded here.
        """
        entry = self.entry((tenant, model))
        if not version and entry.current is not None:
            return entry.versions[entry.current]
        release = self._trust.release(tenant, model)
        if release is None or not release.versions:
            raise NotFound("no such model")
        if version:
            number = release.labels[version] if version in release.labels else parse_number(version)
            if number in entry.versions:
                return entry.versions[number]
            if all(released.number != number for released in release.versions):
                raise NotFound("no such version")
        raise FailedPrecondition("released, and not loaded here")

    def put(self, loaded: LoadedModel, *, current: bool) -> None:
        """Serves `loaded` in place of what had its number; makes it the current one if asked to."""
        key = (loaded.slot.tenant, loaded.slot.model)
        with self._lock:
            entry = self.entry(key)
            before = entry.versions.get(loaded.slot.number)
            if before is not None and before.manifest_sha256 == loaded.manifest_sha256:
                loaded = replace(loaded, statistics=before.statistics)  # the same model: its counts go on
            versions = {**entry.versions, loaded.slot.number: loaded}
            self._replace(
                key,
                replace(
                    entry,
                    versions=MappingProxyType(versions),
                    current=loaded.slot.number if current else entry.current,
                    unloaded=False,
                ),
            )

    def point(self, key: ModelKey, number: int | None) -> None:
        """Makes a loaded version the current one, or none; does nothing when it is not loaded."""
        with self._lock:
            entry = self.entry(key)
            if (number is None or number in entry.versions) and entry.current != number:
                self._replace(key, replace(entry, current=number))

    def remove(self, key: ModelKey, number: int) -> None:
        """Takes one version out; calls that run on it finish."""
        with self._lock:
            entry = self.entry(key)
            versions = {kept: loaded for kept, loaded in entry.versions.items() if kept != number}
            current = None if entry.current == number else entry.current
            self._replace(key, replace(entry, versions=MappingProxyType(versions), current=current))

    def unload(self, key: ModelKey) -> None:
        """Takes a model out until it is loaded again on purpose."""
        with self._lock:
            self._replace(key, Entry(unloaded=True))

    def _replace(self, key: ModelKey, entry: Entry) -> None:
        self._entries = MappingProxyType({**self._entries, key: entry})
