"""A key-encryption key in a file of mode 0600: for development and for one machine.

AES-256-GCM with a random 12-byte nonce. A version wraps far fewer than the 2^32
messages that SP 800-38D section 8.3 allows: one per dataset version or secret.

If this fails: whoever has the file and the database opens every row of that
service. Keep the file out of the database's backups; the other services' keys differ.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.encoding import length_prefixed
from casemate.sealing.kek import KekState, KekStatus
from casemate.sealing.keys import DATA_KEY_BYTES, MAX_KEK_VERSION, DataKey, KeyContext, WrappedKey
from casemate.sealing.private_files import alone_with, read_private, rewrite_file, write_file
from casemate.secret import Secret

_FORMAT: Final = "casemate-local-kek/1"
_WHAT: Final = "the key-encryption key file"
_NONCE_BYTES: Final = 12
_WRAP_LABEL: Final = b"casemate/local-wrap@v1"
_SECRET_LABEL: Final = b"casemate/local-secret@v1"
_FINGERPRINT_LABEL: Final = b"casemate/local-fingerprint@v1"


class LocalKeyRing:
    """All versions of one key-encryption key; the newest wraps, every one unwraps.

    Made by `create`, `load` or `rotate`. Implements `kek.KeyEncryptionKey`.
    """

    __slots__ = ("_current", "_fingerprints", "_kek_id", "_versions")

    def __init__(self, *, kek_id: str, versions: Mapping[int, Secret[bytes]]) -> None:
        self._kek_id = kek_id
        self._versions = {number: AESGCM(key.reveal()) for number, key in versions.items()}
        self._fingerprints = {number: _fingerprint(key) for number, key in versions.items()}
        self._current = max(versions)

    @classmethod
    def create(cls, path: Path) -> LocalKeyRing:
        """A new ring with one version, written to `path` with mode 0600.

        Raises:
            ConfigurationError: there is a file at `path`. A key that wraps data is never replaced.
        """
        kek_id = f"local-{secrets.token_hex(8)}"
        versions = {1: Secret(secrets.token_bytes(DATA_KEY_BYTES))}
        write_file(path, _encode(kek_id, versions), replace=False)
        return cls(kek_id=kek_id, versions=versions)

    @classmethod
    def load(cls, path: Path) -> LocalKeyRing:
        """The ring in `path`.

        Raises:
            ConfigurationError: the file is missing, readable by others, or not a key ring.
        """
        kek_id, versions = _decode(read_private(path, what=_WHAT), path)
        return cls(kek_id=kek_id, versions=versions)

    @classmethod
    def rotate(cls, path: Path, *, after: int | None = None) -> LocalKeyRing:
        """The ring in `path` with one version more, which wraps from now on.

        A process that uses `watched_ring.WatchedKeyRing` takes it up by itself; then rewrap.
        Of several at once each adds a version to what the others have added. The file keeps
        its owner and its mode; a link stays one.

        Args:
            path: the ring's file.
            after: the version that must be the current one, so that of two operators who
                saw it one rotates; any if it is not given.

        Raises:
            ConfigurationError: as `load`; or another version is current than `after`.
        """
        with alone_with(path):
            kek_id, versions = _decode(read_private(path, what=_WHAT), path)
            current = max(versions)
            if after is not None and current != after:
                raise ConfigurationError(f"{path} is at version {current} already: somebody else rotated it")
            if current >= MAX_KEK_VERSION:
                raise ConfigurationError(f"{path} has no version number left")
            versions[current + 1] = Secret(secrets.token_bytes(DATA_KEY_BYTES))
            rewrite_file(path, _encode(kek_id, versions))
        return cls(kek_id=kek_id, versions=versions)

    def require_follows(self, older: LocalKeyRing) -> None:
        """Returns if this ring may take the place of `older`, which wraps until now.

        Old versions may be gone, as when an operator removed them.

        Raises:
            ConfigurationError: it is of another key, at an older version, or has another key
                under a version's number: what was wrapped under that would open no more.
        """
        if self._kek_id != older._kek_id:
            raise ConfigurationError(f"it holds another key than {older._kek_id}")
        if self._current < older._current:
            raise ConfigurationError("it is older than the ring in use")
        for number in self._fingerprints.keys() & older._fingerprints.keys():
            if not hmac.compare_digest(self._fingerprints[number], older._fingerprints[number]):
                raise ConfigurationError(f"it holds another key under version {number} than the ring in use")

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`."""
        key = DataKey.generate()
        return key, await self.wrap(key, context)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        return self._seal(key, context, _WRAP_LABEL)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        return DataKey(self._open(wrapped, context, _WRAP_LABEL))

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        return await self.wrap(await self.unwrap(wrapped, context), context)

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`. A local key is always enabled: deleting the file is how to stop it."""
        return self.describe()

    def describe(self) -> KekState:
        """What `state` says, without waiting: it is in memory."""
        return KekState(
            kek_id=self._kek_id,
            current_version=self._current,
            status=KekStatus.ENABLED,
            is_for_development=True,
        )

    def seal_secret(self, secret: Secret[bytes], context: KeyContext) -> bytes:
        """`secret`, of any length, sealed for a file beside this ring, such as a CA's private key.

        A wrapped data key never opens as a secret, nor the other way round.
        """
        return self._seal(secret, context, _SECRET_LABEL).to_bytes()

    def open_secret(self, sealed: bytes, context: KeyContext) -> Secret[bytes]:
        """What `seal_secret` sealed.

        Raises:
            StoredDataUnreadable: another context, another ring, or changed bytes.
        """
        return Secret(self._open(WrappedKey.parse(sealed), context, _SECRET_LABEL))

    def _seal(self, secret: Secret[bytes], context: KeyContext, label: bytes) -> WrappedKey:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        associated = self._associated_data(context, label, self._current)
        return WrappedKey(
            kek_id=self._kek_id,
            kek_version=self._current,
            # Revealed here and in no local: a traceback may be printed with them.
            ciphertext=nonce + self._versions[self._current].encrypt(nonce, secret.reveal(), associated),
            context_sha256=context.sha256(),
        )

    def _open(self, wrapped: WrappedKey, context: KeyContext, label: bytes) -> bytes:
        cipher = self._versions.get(wrapped.kek_version)
        if wrapped.kek_id != self._kek_id or cipher is None:
            name = f"{wrapped.kek_id} version {wrapped.kek_version}"
            raise StoredDataUnreadable(f"wrapped under {name}, which {self._kek_id} is not or has not")
        if not hmac.compare_digest(wrapped.context_sha256, context.sha256()):
            raise StoredDataUnreadable(f"wrapped for another context than {context}")
        nonce, ciphertext = wrapped.ciphertext[:_NONCE_BYTES], wrapped.ciphertext[_NONCE_BYTES:]
        if len(nonce) != _NONCE_BYTES:
            raise StoredDataUnreadable(f"wrapped bytes for {context} are cut short")
        try:
            return cipher.decrypt(nonce, ciphertext, self._associated_data(context, label, wrapped.kek_version))
        except InvalidTag as error:
            raise StoredDataUnreadable(f"wrapped bytes for {context} do not authenticate") from error

    def _associated_data(self, context: KeyContext, label: bytes, version: int) -> bytes:
        return label + length_prefixed(self._kek_id.encode(), struct.pack(">I", version), context.to_bytes())


def _fingerprint(key: Secret[bytes]) -> bytes:
    return hmac.digest(key.reveal(), _FINGERPRINT_LABEL, "sha256")


def _encode(kek_id: str, versions: Mapping[int, Secret[bytes]]) -> bytes:
    keys = {str(number): base64.b64encode(key.reveal()).decode() for number, key in sorted(versions.items())}
    return json.dumps({"format": _FORMAT, "kek_id": kek_id, "versions": keys}, indent=2).encode() + b"\n"


def _decode(data: bytes, path: Path) -> tuple[str, dict[int, Secret[bytes]]]:
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT or not isinstance(document["kek_id"], str):
            raise ValueError("unknown format")
        versions = {
            int(number): Secret(base64.b64decode(key, validate=True)) for number, key in document["versions"].items()
        }
        if not versions or any(len(key.reveal()) != DATA_KEY_BYTES for key in versions.values()):
            raise ValueError("no key, or one of the wrong length")
        if not 1 <= min(versions) <= max(versions) <= MAX_KEK_VERSION or len(versions) < len(document["versions"]):
            raise ValueError("a number that no version has, or one that two have")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        # The cause is dropped on purpose: a decoder's message may quote what it read.
        raise ConfigurationError(f"{_WHAT} is not a key ring: {path}") from None
    return document["kek_id"], versions
