"""Judges a backup, and says what was judged.

Without a key-encryption key only damage shows: every part has the length and the
digest that the manifest names, and whoever alters a part may alter the manifest too.
With the keys the seals are verified: the manifest was made by somebody who could use
them, and not changed since. Neither says that there is no newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.backup import log_file
from casemate.backup.create import SEALED_BY
from casemate.backup.folder import read_part
from casemate.backup.manifest import MANIFEST, BackupClass, Manifest, require_sealed
from casemate.errors import StoredDataUnreadable

if TYPE_CHECKING:
    from casemate.sealing.kek import KeyEncryptionKey


@dataclass(frozen=True, slots=True)
class VerifiedBackup:
    """A backup whose parts are those of its manifest.

    `sealed_by` are the services whose seals were verified; without any, the digests
    prove that nothing was damaged, and nothing about who made it.
    """

    folder: Path
    manifest: Manifest
    sealed_by: tuple[str, ...]


async def verify(
    folder: Path,
    *,
    keks: Mapping[str, KeyEncryptionKey] | None = None,
    passed: Callable[[int], None] = lambda _: None,
) -> VerifiedBackup:
    """The backup in a folder, judged whole. Reads every byte once.

    Args:
        folder: the backup's folder.
        keks: the key-encryption keys, to verify who made it.
        passed: told how many bytes were read.

    Raises:
        ConfigurationError: it is no whole backup, or another key-encryption key is wanted.
        StoredDataUnreadable: something in it was altered, cut short, or added.
    """
    manifest = Manifest.load(folder)
    sealed_by = SEALED_BY[manifest.kind] if keks is not None else ()
    for name in sealed_by:
        await require_sealed(manifest, name, (keks or {})[name])
    _require_nothing_else(folder, manifest)
    for part in manifest.parts:
        for _ in read_part(folder, part, passed=passed):
            pass
    if manifest.kind is BackupClass.LOG:
        require_log(folder, manifest)
    return VerifiedBackup(folder, manifest, tuple(sealed_by))


def require_log(folder: Path, manifest: Manifest) -> None:
    """Returns if the entries in the log's file give the root that the manifest names.

    Raises:
        StoredDataUnreadable: they do not.
    """
    tree = log_file.Tree()
    for entry in log_file.decode(read_part(folder, manifest.part(log_file.LOG_PART))):
        tree.add(entry)
    if (tree.size, tree.root.hex()) != (manifest.log.size, manifest.log.root):
        raise StoredDataUnreadable(f"the entries in {folder} are not the log that its manifest names")


def _require_nothing_else(folder: Path, manifest: Manifest) -> None:
    known = {part.path for part in manifest.parts} | {MANIFEST}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        # A link to a folder is none of ours either: what lies behind it was never written by a backup.
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            raise StoredDataUnreadable(f"{name} is in the backup's folder and not in its manifest")
