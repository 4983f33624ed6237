"""Seals published files into the repository and opens them again.

Each version has one data key, wrapped by the service's key-encryption key for
exactly this tenant, model and number; each file is sealed for its own name.

If this fails: a copy of the repository shows the models. What is served is
still only what the feed names, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import Unavailable
from casemate.sealing.files import open_bytes, seal_stream
from casemate.sealing.keys import KeyContext, WrappedKey
from services.inference.repository import FILES, MANIFEST, SEALED, WRAPPED_KEY, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from casemate.sealing.keys import DataKey
    from services.inference.blocking_kek import BlockingKek
    from services.inference.repository import Store, Stored

MAX_MANIFEST_BYTES = 256 * 1024
MAX_WRAPPED_KEY_BYTES = 16 * 1024
_PURPOSE = "model-files"
_PIECE_BYTES = 64 * 1024


class OpenedVersion:
    """One stored version while it is read."""

    def __init__(self, stored: Stored, slot: Slot, keys: BlockingKek) -> None:
        self._stored = stored
        self._slot = slot
        self._keys = keys
        self._data_key: DataKey | None = None

    def manifest(self) -> bytes:
        """The signed envelope as stored; not verified.

        Raises:
            NotStored: absent, a link, or too long.
        """
        return self._stored.read(MANIFEST, limit=MAX_MANIFEST_BYTES)

    def file(self, name: str, *, plaintext_bytes: int) -> bytes:
        """The plaintext of a file; compare it with its signed digest before use.

        Raises:
            NotStored: absent, a link, or longer than a file of `plaintext_bytes` can be.
            StoredDataUnreadable: not what was sealed here.
            Unavailable: the key-encryption key does not answer.
        """
        sealed = self._stored.read(FILES, f"{name}{SEALED}", limit=_sealed_limit(plaintext_bytes))
        if self._data_key is None:
            wrapped = WrappedKey.parse(self._stored.read(WRAPPED_KEY, limit=MAX_WRAPPED_KEY_BYTES))
            self._data_key = self._keys.unwrap(wrapped, key_context(self._slot))
        return open_bytes(self._data_key, sealed, context=_file_context(self._slot, name))


class Vault:
    """The repository behind the key-encryption key."""

    def __init__(self, *, repository: Store, keys: BlockingKek) -> None:
        self._repository = repository
        self._keys = keys

    def store(
        self, slot: Slot, *, manifest: bytes, files: Mapping[str, bytes], still: Callable[[], None] = lambda: None
    ) -> None:
        """Seals and writes a version durably, unless `still` raises before it takes its place.

        Raises:
            Unavailable: the key-encryption key does not answer, or the disk takes no more; what was there is there.
        """
        key, wrapped = self._keys.generate_data_key(key_context(slot))
        sealed = {
            name: seal_stream(key, _pieces(data), context=_file_context(slot, name)) for name, data in files.items()
        }
        try:
            self._repository.write(slot, manifest=manifest, wrapped_key=wrapped.to_bytes(), files=sealed, still=still)
        except OSError as error:  # a full disk, as a rule
            raise Unavailable(f"{slot} cannot be written: {error.strerror}") from error

    def read(self, slot: Slot) -> _Reading:
        """A context in which the version's parts are read from one directory, held open."""
        return _Reading(self._repository, slot, self._keys)


class _Reading:
    def __init__(self, repository: Store, slot: Slot, keys: BlockingKek) -> None:
        self._opening = repository.open(slot)
        self._slot = slot
        self._keys = keys

    def __enter__(self) -> OpenedVersion:
        return OpenedVersion(self._opening.__enter__(), self._slot, self._keys)

    def __exit__(self, *exception: object) -> None:
        self._opening.__exit__(*exception)  # type: ignore[arg-type]  # passed on as it came


def key_context(slot: Slot) -> KeyContext:
    """What the data key of a version is bound to."""
    return KeyContext(purpose=_PURPOSE, tenant=slot.tenant, name=slot.model, version=slot.number)


def _file_context(slot: Slot, name: str) -> bytes:
    # NUL is in no name, so no two places give the same context.
    return "\0".join((_PURPOSE, *slot.parts, name)).encode()


def _sealed_limit(plaintext_bytes: int) -> int:
    # Generous: header and a tag per chunk; it only bounds what is read into memory.
    return plaintext_bytes + plaintext_bytes // 256 + 4096


def _pieces(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), _PIECE_BYTES):
        yield bytes(view[start : start + _PIECE_BYTES])
