"""Makes a backup: up to three folders of one moment, each whole or not there."""

from __future__ import annotations

import importlib.metadata
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.backup import log_file, programs
from casemate.backup.folder import WritingFolder, finish, reader, write_backup
from casemate.backup.manifest import BackupClass, KekName, LogState, Manifest, seal
from casemate.backup.models import Models, open_models
from casemate.backup.places import AUTH, DATAKEYS, DATASETS, Places, open_keks
from casemate.backup.snapshots import Snapshot, one_moment
from casemate.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.clock import Clock
    from casemate.sealing.kek import KeyEncryptionKey

SEALED_BY: Final = {
    BackupClass.ROWS: ("auth", "datasets", "inference"),
    BackupClass.DATAKEYS: ("datasets",),
    BackupClass.LOG: ("datasets",),
}
"""Whose key-encryption keys seal the manifest of each class."""

MODELS: Final = "models"
AUTHORITY: Final = "pki"
_ATTEMPTS: Final = 3
"""How often a version that is replaced while it is copied is begun anew."""


@dataclass(frozen=True, slots=True)
class Created:
    """A folder that was made, and its manifest."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What all classes of one backup share."""

    id: str
    taken_at: datetime
    places: Places
    keks: Mapping[str, KeyEncryptionKey]
    snapshots: Mapping[str, Snapshot]
    log: LogState
    passed: Callable[[int], None]


async def create(
    places: Places,
    targets: Mapping[BackupClass, Path],
    *,
    clock: Clock,
    passed: Callable[[int], None] = lambda _: None,
) -> list[Created]:
    """Makes one folder below each target, named by the backup's id; the rows last, so that with them all is there.

    Services go on meanwhile. Memory does not grow with what is backed up.

    Args:
        places: what to back up.
        targets: where each class goes.
        clock: for the time and the id.
        passed: told how many bytes were written.

    Raises:
        ConfigurationError: a target is not writable, a login or a program fails, a key is missing.
        Unavailable: a database or a key-encryption key does not answer.
    """
    names = [DATASETS] if set(targets) == {BackupClass.LOG} else [AUTH, DATASETS, DATAKEYS]
    if not set(names) <= places.databases.keys():
        raise ConfigurationError("there is no database here to back up")
    async with open_keks(places, clock) as keks, one_moment(places.databases, names) as snapshots:
        now = clock.now()
        moment = _Moment(
            id=f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}",
            taken_at=now,
            places=places,
            keks=keks,
            snapshots=snapshots,
            log=await _log_state(snapshots[DATASETS]),
            passed=passed,
        )
        order = (BackupClass.LOG, BackupClass.DATAKEYS, BackupClass.ROWS)
        return [await _create(moment, kind, targets[kind]) for kind in order if kind in targets]


async def _create(moment: _Moment, kind: BackupClass, target: Path) -> Created:
    folder = target / moment.id
    with write_backup(folder, passed=moment.passed) as writing:
        if kind is BackupClass.LOG:
            await writing.stream(log_file.LOG_PART, _log_pieces(moment.snapshots[DATASETS]))
            names: tuple[str, ...] = (DATASETS,)
        elif kind is BackupClass.DATAKEYS:
            await _dump(writing, moment, DATAKEYS)
            names = (DATAKEYS,)
        else:
            names = (AUTH, DATASETS)
            for name in names:
                await _dump(writing, moment, name)
            _copy_keys(writing, moment.places)
            _copy_models(writing, open_models(moment.places.repository))
        manifest = Manifest(
            id=moment.id,
            kind=kind,
            taken_at=moment.taken_at,
            trust_domain=moment.places.trust_domain,
            program=importlib.metadata.version("casemate"),
            keks=await _kek_names(moment.keks, kind),
            schemas={name: await moment.snapshots[name].migrations() for name in names},
            log=moment.log,
            parts=tuple(sorted(writing.parts, key=lambda part: part.path)),
            expires_at=moment.taken_at + moment.places.retention if kind is BackupClass.DATAKEYS else None,
        )
        manifest = await seal(manifest, {name: moment.keks[name] for name in SEALED_BY[kind]})
        finish(folder, manifest)
    return Created(folder, manifest)


async def _dump(writing: WritingFolder, moment: _Moment, name: str) -> None:
    snapshot = moment.snapshots[name]
    await writing.stream(f"{name}.dump", programs.dump(snapshot.database, snapshot=snapshot.name))


def _copy_keys(writing: WritingFolder, places: Places) -> None:
    """Keys that are sealed under the key-encryption keys, and the certificate authority's certificate."""
    for service, path in places.authority_keys.items():
        try:
            writing.copy(authority_key_part(service), reader(path))
        except FileNotFoundError as error:
            raise ConfigurationError(f"{path} is gone: rows of authority are verified by it alone") from error
    if places.authority is not None:
        for file in sorted(path for path in places.authority.iterdir() if path.is_file()):
            writing.copy(f"{AUTHORITY}/{file.name}", reader(file))


def _copy_models(writing: WritingFolder, models: Models) -> None:
    """Every version that is whole; one that is discarded meanwhile is left out."""
    for version in models.versions():
        for _ in range(_ATTEMPTS):
            try:
                for name, source in models.files(version):
                    writing.copy(f"{MODELS}/{version}/{name}", source)
                break
            except FileNotFoundError:
                writing.forget(f"{MODELS}/{version}")
                if not models.has(version):
                    break
        else:
            raise Unavailable(f"model {version} changes while it is copied")


def authority_key_part(service: str) -> str:
    """Where the sealed MAC key of a service lies in a backup."""
    return f"keys/{service}.authority.json"


async def _log_state(snapshot: Snapshot) -> LogState:
    tree = log_file.Tree()
    async for entry in snapshot.log_entries():
        tree.add(entry)
    return LogState(size=tree.size, root=tree.root.hex())


async def _log_pieces(snapshot: Snapshot) -> AsyncIterator[bytes]:
    async for entry in snapshot.log_entries():
        yield log_file.encode(entry)


async def _kek_names(keks: Mapping[str, KeyEncryptionKey], kind: BackupClass) -> dict[str, KekName]:
    wanted = keks if kind is BackupClass.ROWS else SEALED_BY[kind]
    states = {name: await keks[name].state() for name in wanted}
    return {name: KekName(kek_id=state.kek_id, version=state.current_version) for name, state in states.items()}
