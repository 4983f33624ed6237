"""Where the things are that `casemate backup` works on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.backup.places import DATABASES, Places, open_keks
from casemate.cli.main import Options
from casemate.cli.state import SERVICES, StateDirectory
from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.sealing.provider import FileKek
from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from casemate.backup.manifest import Manifest
    from casemate.sealing.kek import KeyEncryptionKey


def find_places(options: Options, trust_domain: str, *, from_environment: bool) -> Places:
    """Where everything is that a backup holds: in the state directory, or where the services' settings say.

    Raises:
        ConfigurationError: there is nothing, or a setting is missing or malformed.
    """
    if from_environment:
        return environment_places()
    state = StateDirectory(options.state)
    if not state.root.is_dir():
        raise ConfigurationError(f"there is nothing in {state.root}")
    # A machine that is to be restored on has keys, and no passwords yet; none are made here.
    made = [name for name in DATABASES if state.password_file(name).exists()]
    socket = str(EmbeddedPostgres(directory=state.postgres).socket_directory) if made else ""
    databases = {
        name: DatabaseSettings(host=socket, name=name, user=name, password=state.password(name)) for name in made
    }
    return local_places(state, trust_domain, databases)


def environment_places() -> Places:
    """Where the services' own settings say."""
    environment = dict(os.environ)  # noqa: TID251  # the services' own settings, as they would read them
    return Places.of(dict.fromkeys(SERVICES, environment), authority=None, pki=None)


def local_places(state: StateDirectory, trust_domain: str, databases: Mapping[str, DatabaseSettings]) -> Places:
    """The parts of a state directory."""
    return Places(
        trust_domain=trust_domain,
        databases=databases,
        keks={owner: FileKek(path=state.kek(owner)) for owner in (*SERVICES, "pki")},
        authority_keys={service: state.kek(service).with_suffix(".authority.json") for service in ("auth", "datasets")},
        repository=state.repository,
        authority=state.authority,
        retention=timedelta(days=30),
    )


@asynccontextmanager
async def open_here(places: Places, manifest: Manifest) -> AsyncIterator[Mapping[str, KeyEncryptionKey]]:
    """The key-encryption keys that a backup names; when one is missing here, the message says which are wanted.

    Raises:
        ConfigurationError: as `open_keks`.
    """
    async with AsyncExitStack() as stack:
        try:
            named = {name: place for name, place in places.keks.items() if name in manifest.keks}
            keks = await stack.enter_async_context(open_keks(replace(places, keks=named), SystemClock()))
        except ConfigurationError as error:
            wanted = ", ".join(f"{name}: {kek.kek_id} version {kek.version}" for name, kek in manifest.keks.items())
            raise ConfigurationError(f"{error}; backup {manifest.id} wants {wanted}") from error
        yield keks
