"""What a backup holds, by digest, under one MAC for each key-encryption key that it depends on.

A backup is a folder. Its manifest is written last, and names every file with its
length and SHA-256. The manifest carries seals: for each service a fresh MAC key,
wrapped by that service's key-encryption key, and the MAC of the manifest under it.
So whoever stores backups can destroy them and can offer an older one, whose time is
shown; to change one, or to make one up, takes a key-encryption key.

If this fails: a restore puts back rows and files that somebody chose. Rows still
carry MACs, sealed rows and models still open only as what they were.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.keys import KeyContext, WrappedKey

MANIFEST: Final = "manifest.json"
_FORMAT: Final = "casemate-backup/1"
_LABEL: Final = b"casemate/backup-manifest@v1\x00"
_MAX_BYTES: Final = 256 * 1024 * 1024  # a line for every file of every model


class BackupClass(StrEnum):
    """What is kept apart, since it is kept for different times."""

    ROWS = "rows"
    """Databases, sealed models, sealed keys."""
    DATAKEYS = "datakeys"
    """The wrapped data keys: receipts of shredding say how long these may live."""
    LOG = "log"
    """The transparency log alone: small, so it can be taken often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of the backup.

    Attributes:
        path: below the backup's folder, with `/`.
        size: in bytes.
        sha256: of its content, hexadecimal.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KekName:
    """Which key-encryption key, and the version that wrapped at the time."""

    kek_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """How far the transparency log was, and its RFC 9162 root, hexadecimal."""

    size: int
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A MAC of the manifest, and its key, wrapped; both base64."""

    wrapped: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a backup before a byte of its parts is read.

    Attributes:
        id: names the moment; the classes of one moment share it.
        kind: which class.
        taken_at: when the snapshots were taken.
        trust_domain: whose.
        program: version of the program that made it.
        keks: by service; the keys are not inside.
        schemas: by database, the SHA-256 of each migration in it, in order.
        log: the transparency log at that moment.
        parts: the files.
        expires_at: for data keys, until when receipts allow it to exist.
        seals: by service.
    """

    id: str
    kind: BackupClass
    taken_at: datetime
    trust_domain: str
    program: str
    keks: Mapping[str, KekName]
    schemas: Mapping[str, tuple[str, ...]]
    log: LogState
    parts: tuple[Part, ...]
    expires_at: datetime | None = None
    seals: Mapping[str, Seal] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return json.dumps(self._document(), indent=1, sort_keys=True).encode() + b"\n"

    def sealed_bytes(self) -> bytes:
        """What the MACs are over: all but the seals, in one spelling."""
        document = replace(self, seals={})._document()
        return _LABEL + json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def total_bytes(self) -> int:
        """Length of all parts together."""
        return sum(part.size for part in self.parts)

    def part(self, path: str) -> Part:
        """The part at a path.

        Raises:
            ConfigurationError: the backup has none there.
        """
        for part in self.parts:
            if part.path == path:
                return part
        raise ConfigurationError(f"backup {self.id} holds no {path}")

    def _document(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "format": _FORMAT,
            "kind": self.kind.value,
            "taken_at": self.taken_at.isoformat(),
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
        }

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest of a backup's folder, believed nothing.

        Raises:
            ConfigurationError: there is no whole backup, or its manifest is not one.
        """
        file = folder / MANIFEST
        try:
            with open_stored(file) as stream:
                data = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(f"{folder} is no whole backup: {MANIFEST}: {error.strerror}") from error
        try:
            return _parse(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigurationError(f"{file} is not the manifest of a backup that this program reads") from error


def open_stored(file: Path) -> IO[bytes]:
    """Opens what a store of backups keeps, if it is a file: a pipe in its place would be waited for without end.

    Raises:
        OSError: it is missing, a link, or something else than a file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise FileNotFoundError(errno.ENOENT, "it is not a file")
    return stream


def _parse(document: Mapping[str, Any]) -> Manifest:
    if document["format"] != _FORMAT:
        raise ValueError("another format")
    expires_at = document["expires_at"]
    parts = tuple(Part(**part) for part in document["parts"])
    if len({part.path for part in parts}) != len(parts) or not all(map(_is_sound, parts)):
        raise ValueError("parts")
    return Manifest(
        id=str(document["id"]),
        kind=BackupClass(document["kind"]),
        taken_at=datetime.fromisoformat(document["taken_at"]).astimezone(UTC),
        trust_domain=str(document["trust_domain"]),
        program=str(document["program"]),
        keks={name: KekName(**kek) for name, kek in document["keks"].items()},
        schemas={name: tuple(digests) for name, digests in document["schemas"].items()},
        log=LogState(**document["log"]),
        parts=parts,
        expires_at=None if expires_at is None else datetime.fromisoformat(expires_at).astimezone(UTC),
        seals={name: Seal(**seal) for name, seal in document["seals"].items()},
    )


def _is_sound(part: Part) -> bool:
    """Whether a part stays inside the folder and says what a part says."""
    path = PurePosixPath(part.path)
    inside = not path.is_absolute() and ".." not in path.parts and str(path) == part.path and part.path != MANIFEST
    return inside and isinstance(part.size, int) and part.size >= 0 and len(bytes.fromhex(part.sha256)) == 32


async def seal(manifest: Manifest, keks: Mapping[str, KeyEncryptionKey]) -> Manifest:
    """The manifest with one seal for each key-encryption key."""
    seals = {}
    for name, kek in keks.items():
        key, wrapped = await kek.generate_data_key(_context(manifest, name))
        mac = hmac.digest(key.reveal(), manifest.sealed_bytes(), hashlib.sha256)
        seals[name] = Seal(wrapped=_base64(wrapped.to_bytes()), mac=_base64(mac))
    return replace(manifest, seals=seals)


async def require_sealed(manifest: Manifest, name: str, kek: KeyEncryptionKey) -> None:
    """Returns if the seal of a service is good: who made the manifest could use this very key.

    Raises:
        ConfigurationError: another key-encryption key is wanted; says which, and which was found.
        StoredDataUnreadable: the manifest was changed, or never sealed.
    """
    found = manifest.seals.get(name)
    if found is None or name not in manifest.keks:
        raise StoredDataUnreadable(f"backup {manifest.id} is not sealed under the key-encryption key of {name}")
    await require_kek(manifest, name, kek)
    try:
        wrapped = WrappedKey.parse(base64.b64decode(found.wrapped, validate=True))
        mac = base64.b64decode(found.mac, validate=True)
    except ValueError:
        raise StoredDataUnreadable(f"backup {manifest.id} carries no legible seal of {name}") from None
    key = await kek.unwrap(wrapped, _context(manifest, name))
    if not hmac.compare_digest(hmac.digest(key.reveal(), manifest.sealed_bytes(), hashlib.sha256), mac):
        raise StoredDataUnreadable(f"the manifest of backup {manifest.id} is not the one that was sealed")


async def require_kek(manifest: Manifest, name: str, kek: KeyEncryptionKey) -> None:
    """Returns if a key-encryption key is the one that the backup was made under, at its version or later.

    Raises:
        ConfigurationError: it is another; says which is wanted, and which was found.
    """
    state, wanted = await kek.state(), manifest.keks[name]
    if state.kek_id != wanted.kek_id or 0 < state.current_version < wanted.version:
        raise ConfigurationError(
            f"backup {manifest.id} wants the key-encryption key {wanted.kek_id} version {wanted.version} of {name}, "
            f"and found {state.kek_id} version {state.current_version}: put the right one in place"
        )


def _context(manifest: Manifest, name: str) -> KeyContext:
    return KeyContext(
        purpose="backup-manifest", tenant="", name=f"{name}/{manifest.kind.value}/{manifest.id}", version=1
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
