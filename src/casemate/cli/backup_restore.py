"""Restores on one machine, and into what the services' settings name."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.backup import restore as restoring
from casemate.backup.manifest import Manifest
from casemate.backup.places import DATABASES
from casemate.cli.backup_places import environment_places, local_places, open_here
from casemate.cli.children import Launcher, find_checkout
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.supervisor import ChildCommand
from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.storage.data_folder import end_predecessor
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.migrations import digests

if TYPE_CHECKING:
    from casemate.sealing.kek import KeyEncryptionKey

_SCHEMAS: Final = {
    "casemate_auth": "auth/schema",
    "casemate_datasets": "datasets/schema",
    "casemate_datakeys": "datasets/datakeys_schema",
}


async def restore_here(
    state: StateDirectory, trust_domain: str, request: restoring.Request, passed: Callable[[int], None]
) -> dict[str, Mapping[str, object]]:
    """Into a state directory that has the key-encryption keys and nothing else, with a database of its own.

    Raises:
        ConfigurationError, StoredDataUnreadable: as `casemate.backup.restore`.
    """
    checkout = find_checkout()
    state.create()
    with _alone(state):
        places = local_places(state, trust_domain, {})
        async with open_here(places, Manifest.load(request.rows)) as keks:
            judged = await _judge(request, keks, checkout, trust_domain, passed)
        postgres = EmbeddedPostgres(directory=state.postgres)
        unfinished = state.unfinished_restore
        if unfinished.exists():
            await _clear(state, postgres)
        elif (state.postgres / "superuser.password").exists() or (state.root / "operator.bootstrapped").exists():
            raise ConfigurationError(f"there is a database in {state.root} already: nothing was restored")
        else:
            await restoring.require_empty(places)
            # Before anything of ours is there, so that a second run knows that it may clear it away.
            unfinished.write_text(judged.rows.manifest.id)
        async with postgres:
            databases = {name: await postgres.ensure_database(name, state.password(name)) for name in DATABASES}
            places = local_places(state, trust_domain, databases)
            launcher = Launcher(
                state=state, ports=Ports.fixed(), trust_domain=trust_domain, checkout=checkout, databases=databases
            )
            done = await restoring.put_back(
                judged,
                places,
                staging=state.root / "restore.keys",
                after=_runner(launcher.service, state.root / "restore.keys"),
                passed=passed,
            )
        for mark in ("operator.bootstrapped", "seeded"):
            (state.root / mark).touch()
        unfinished.unlink()
    return done


async def restore_there(
    trust_domain: str, request: restoring.Request, passed: Callable[[int], None]
) -> dict[str, Mapping[str, object]]:
    """Into the empty databases and folders that the services' settings name.

    Raises:
        ConfigurationError, StoredDataUnreadable: as `casemate.backup.restore`.
    """
    checkout = find_checkout()
    environment = dict(os.environ)  # noqa: TID251  # the services' own settings, as they would read them
    places = environment_places()
    async with open_here(places, Manifest.load(request.rows)) as keks:
        judged = await _judge(request, keks, checkout, trust_domain, passed)
    await restoring.require_empty(places)
    staging = next(iter(places.authority_keys.values())).parent / "restore.keys"
    shutil.rmtree(staging, ignore_errors=True)

    def command(service: str, *arguments: str) -> ChildCommand:
        return ChildCommand(
            name=service,
            arguments=(sys.executable, "-m", f"services.{service}", *arguments),
            environment=environment,
            directory=checkout,
            log=Path(os.devnull),
        )

    return await restoring.put_back(judged, places, staging=staging, after=_runner(command, staging), passed=passed)


async def _judge(
    request: restoring.Request,
    keks: Mapping[str, KeyEncryptionKey],
    checkout: Path,
    trust_domain: str,
    passed: Callable[[int], None],
) -> restoring.Judged:
    return await restoring.judge(
        request,
        keks=keks,
        schemas={name: digests(checkout / "services" / where) for name, where in _SCHEMAS.items()},
        trust_domain=trust_domain,
        now=SystemClock().now(),
        passed=passed,
    )


def _runner(
    command: Callable[..., ChildCommand], staging: Path
) -> Callable[[str, Sequence[str]], Awaitable[Mapping[str, object]]]:
    """Runs `after-restore` of a service, its authority key where it lies until the end."""

    async def run(service: str, arguments: Sequence[str]) -> Mapping[str, object]:
        child = command(service, "after-restore", *arguments)
        key = {f"CASEMATE_{service.upper()}_AUTHORITY_KEY_FILE": str(restoring.staged_key(staging, service))}
        process = await asyncio.create_subprocess_exec(
            *child.arguments,
            cwd=child.directory,
            env={**child.environment, **key},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, said = await process.communicate()
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ConfigurationError(f"{service} did not take the backup: {lines[-1]}")
        counts: Mapping[str, object] = json.loads(output)
        return counts

    return run


async def _clear(state: StateDirectory, postgres: EmbeddedPostgres) -> None:
    """Takes away what an interrupted restore put here: no service ever started on it."""
    # The one of the interrupted run shuts down by itself, and may still be at it.
    await end_predecessor(postgres.data_directory)
    await postgres.erase()
    for path in (state.repository, state.authority, state.root / "restore.keys"):
        shutil.rmtree(path, ignore_errors=True)
    for service in ("auth", "datasets"):
        state.kek(service).with_suffix(".authority.json").unlink(missing_ok=True)
    state.create()


@contextlib.contextmanager
def _alone(state: StateDirectory) -> Iterator[None]:
    with state.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"a cluster is running on {state.root}: nothing was restored") from None
        yield
