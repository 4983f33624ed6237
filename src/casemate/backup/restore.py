"""Puts a backup back where nothing is, and says first what could come back with it.

Everything is judged before anything is written. Then databases, models and keys are
put in place, the services take away what the newer log says was taken away, and only
at the very end the keys of the authority's MACs get their place. Without those no
service starts, so a restore that was interrupted serves nobody.

If this fails: something that was shredded or revoked after the backup counts again,
or a target that was in use is written to. The log tells of the first.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.backup import log_file, programs
from casemate.backup.create import AUTHORITY, MODELS, authority_key_part
from casemate.backup.folder import read_part
from casemate.backup.manifest import BackupClass, Manifest, require_kek
from casemate.backup.models import Models, open_models
from casemate.backup.places import AUTH, DATAKEYS, DATASETS, Places
from casemate.backup.verify import VerifiedBackup, verify
from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.private_files import write_file
from casemate.storage.pool import open_connection, storage_errors

if TYPE_CHECKING:
    from casemate.sealing.kek import KeyEncryptionKey

WITHOUT_LOG: Final = "--unsafe-without-newer-log"

_TABLES: Final = """
SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be put back.

    Attributes:
        rows: folder of the backup of that class.
        datakeys: folder of the data keys: of the same moment, or later.
        log: folder of the newest log there is; None if there is none newer.
        checkpoint: a checkpoint of the log that somebody kept; the log may not be older.
        without_log: whether to go on without a newer log.
    """

    rows: Path
    datakeys: Path
    log: Path | None = None
    checkpoint: Path | None = None
    without_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A request that may be carried out, since all of it was verified."""

    rows: VerifiedBackup
    datakeys: VerifiedBackup
    log: VerifiedBackup | None

    @property
    def newest_log(self) -> log_file.LogFile | None:
        """The newer log, for those who replay it."""
        if self.log is None:
            return None
        state = self.log.manifest.log
        file = self.log.folder / log_file.LOG_PART
        return log_file.LogFile(file=file, size=state.size, root=bytes.fromhex(state.root))


async def judge(
    request: Request,
    *,
    keks: Mapping[str, KeyEncryptionKey],
    schemas: Mapping[str, Sequence[str]],
    trust_domain: str,
    now: datetime,
    passed: Callable[[int], None] = lambda _: None,
) -> Judged:
    """The request, if it may be carried out. Reads every byte of the backup, and writes none.

    Args:
        request: what is to be put back.
        keks: the key-encryption keys that are here.
        schemas: by database, the SHA-256 of each migration that this program knows.
        trust_domain: where it is to be put back.
        now: when.
        passed: told how many bytes were read.

    Raises:
        ConfigurationError: another key-encryption key, trust domain or moment is wanted, the schema is
            newer than this program, or there is no newer log and nobody said that this is accepted.
        StoredDataUnreadable: a backup was altered or cut short.
    """
    rows = await _verified(request.rows, BackupClass.ROWS, keks, passed)
    if rows.manifest.trust_domain != trust_domain:
        raise ConfigurationError(f"backup {rows.manifest.id} is of {rows.manifest.trust_domain}, not of {trust_domain}")
    for name in rows.manifest.keks:
        if name not in keks:
            raise ConfigurationError(f"backup {rows.manifest.id} wants a key-encryption key of {name}")
        await require_kek(rows.manifest, name, keks[name])
    datakeys = await _verified(request.datakeys, BackupClass.DATAKEYS, keks, passed)
    _require_pair(rows.manifest, datakeys.manifest, now)
    for manifest in (rows.manifest, datakeys.manifest):
        _require_known(manifest, schemas)
    log = None if request.log is None else await _verified(request.log, BackupClass.LOG, keks, passed)
    if log is None and not request.without_log:
        raise ConfigurationError(
            f"no newer log is given: whatever was shredded, revoked, disabled or removed after "
            f"{rows.manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC would come back unseen. "
            f"Give the newest by --log; if there is none, say {WITHOUT_LOG}"
        )
    if log is not None:
        _require_newer(rows.manifest, log.manifest)
    if request.checkpoint is not None:
        _require_reaches(request.checkpoint, log, rows.manifest)
    return Judged(rows=rows, datakeys=datakeys, log=log)


async def require_empty(places: Places) -> None:
    """Returns if nothing is where a backup is to go.

    Raises:
        ConfigurationError: something is; says what.
    """
    for name, database in places.databases.items():
        connection = await open_connection(database)
        try:
            with storage_errors():
                tables = await connection.fetchval(_TABLES)
        finally:
            await connection.close()
        if tables:
            raise ConfigurationError(f"database {database.name} ({name}) is not empty: nothing was restored")
    if not open_models(places.repository).is_empty():
        raise ConfigurationError(f"{places.repository} is there already: nothing was restored")
    for path in (*places.authority_keys.values(), *(() if places.authority is None else (places.authority,))):
        if path.is_dir() and not any(path.iterdir()):
            continue
        if path.exists():
            raise ConfigurationError(f"{path} is there already: nothing was restored")


async def put_back(
    judged: Judged,
    places: Places,
    *,
    staging: Path,
    after: Callable[[str, Sequence[str]], Awaitable[Mapping[str, object]]],
    passed: Callable[[int], None] = lambda _: None,
) -> dict[str, Mapping[str, object]]:
    """Restores everything into empty places, and tells what each service took away.

    Args:
        judged: what to put back.
        places: where; `require_empty` judged them.
        staging: a folder for the authority keys until the end.
        after: runs a service's `after-restore` with arguments, its authority key in `staging`.
        passed: told how many bytes were put back.

    Raises:
        ConfigurationError: a database refuses, or a service does.
        StoredDataUnreadable: a part was altered since it was judged.
    """
    rows = judged.rows
    for name, backup in ((AUTH, rows), (DATASETS, rows), (DATAKEYS, judged.datakeys)):
        part = backup.manifest.part(f"{name}.dump")
        await programs.restore(places.databases[name], read_part(backup.folder, part, passed=passed))
    for service in places.authority_keys:
        _write(rows, authority_key_part(service), staged_key(staging, service), passed)
    _write_models(rows, open_models(places.repository), passed)
    arguments = [] if judged.newest_log is None else judged.newest_log.arguments()
    done = {
        "auth": await after("auth", arguments),
        "datasets": await after("datasets", ["--backup", rows.manifest.id, *arguments]),
    }
    if places.authority is not None:
        for part in rows.manifest.parts:
            if part.path.startswith(f"{AUTHORITY}/"):
                _write(rows, part.path, places.authority / part.path.removeprefix(f"{AUTHORITY}/"), passed)
    # From here on the services start.
    for service, path in places.authority_keys.items():
        _write(rows, authority_key_part(service), path, passed)
    shutil.rmtree(staging)
    return done


def staged_key(staging: Path, service: str) -> Path:
    """Where the authority key of a service lies until its restore is complete."""
    return staging / f"{service}.authority.json"


async def _verified(
    folder: Path, kind: BackupClass, keks: Mapping[str, KeyEncryptionKey], passed: Callable[[int], None]
) -> VerifiedBackup:
    found = Manifest.load(folder)
    if found.kind is not kind:
        raise ConfigurationError(f"{folder} is a backup of class {found.kind.value}, and {kind.value} was wanted")
    return await verify(folder, keks=keks, passed=passed)


def _require_pair(rows: Manifest, datakeys: Manifest, now: datetime) -> None:
    if datakeys.trust_domain != rows.trust_domain or datakeys.taken_at < rows.taken_at:
        raise ConfigurationError(
            f"the data keys {datakeys.id} are older than the rows {rows.id}, or of another trust domain: "
            "rows would be without their keys"
        )
    if datakeys.expires_at is not None and datakeys.expires_at <= now:
        raise ConfigurationError(
            f"the data keys {datakeys.id} were to be gone by {datakeys.expires_at:%Y-%m-%d}: "
            "receipts of shredding say that no backup opens a version after that. Delete them"
        )


def _require_known(manifest: Manifest, schemas: Mapping[str, Sequence[str]]) -> None:
    for name, digests in manifest.schemas.items():
        known = tuple(schemas[name])
        if len(digests) > len(known):
            raise ConfigurationError(
                f"{name} in backup {manifest.id} is at migration {len(digests):04}, newer than this program, which "
                f"knows {len(known):04}: restore with the program that made it ({manifest.program}) or a newer one"
            )
        if digests != known[: len(digests)]:
            raise ConfigurationError(f"{name} in backup {manifest.id} has other migrations than this program")


def _require_newer(rows: Manifest, log: Manifest) -> None:
    """More entries are newer, whatever clocks say; with as many, the time decides."""
    if log.id == rows.id:
        raise ConfigurationError(
            f"the log {log.id} is of the very moment of the rows: it tells of nothing that came after. "
            f"Give a newer one; if there is none, say {WITHOUT_LOG}"
        )
    if (log.log.size, log.taken_at) <= (rows.log.size, rows.taken_at):
        raise ConfigurationError(f"the log {log.id} is older than the rows {rows.id}")


def _require_reaches(checkpoint: Path, log: VerifiedBackup | None, rows: Manifest) -> None:
    """The log holds the very tree of a checkpoint. Whoever made the checkpoint does not matter for that."""
    size, root = _read_checkpoint(checkpoint)
    have = rows.log.size if log is None else log.manifest.log.size
    if size > have:
        raise ConfigurationError(
            f"the checkpoint is of {size} entries, and the newest log here has {have}: {size - have} entries are "
            "missing, and what was shredded or revoked in them would come back"
        )
    if log is None:
        return
    tree = log_file.Tree()
    for entry in log_file.decode(read_part(log.folder, log.manifest.part(log_file.LOG_PART))):
        if tree.size < size:
            tree.add(entry)
    if tree.root != root:
        raise StoredDataUnreadable(f"the log {log.manifest.id} is of another history than the checkpoint")


def _read_checkpoint(file: Path) -> tuple[int, bytes]:
    lines = file.read_text(errors="replace").splitlines()
    with contextlib.suppress(ValueError, IndexError, binascii.Error):
        return int(lines[1]), base64.b64decode(lines[2], validate=True)
    raise ConfigurationError(f"{file} is not a checkpoint")


def _write(backup: VerifiedBackup, name: str, target: Path, passed: Callable[[int], None]) -> None:
    write_file(target, b"".join(read_part(backup.folder, backup.manifest.part(name), passed=passed)), replace=True)


def _write_models(backup: VerifiedBackup, models: Models, passed: Callable[[int], None]) -> None:
    versions: dict[str, list[tuple[str, Callable[[], Iterable[bytes]]]]] = {}
    for part in backup.manifest.parts:
        if part.path.startswith(f"{MODELS}/"):
            tenant, model, number, name = part.path.removeprefix(f"{MODELS}/").split("/", 3)
            read = partial(read_part, backup.folder, part, passed=passed)
            versions.setdefault(f"{tenant}/{model}/{number}", []).append((name, read))
    for version, files in versions.items():
        models.write(version, files)
