"""Sealed models in an object store, for replicas that share no disk: S3, by fsspec.

`<prefix>/<tenant>/<model>/<number>/` holds one folder per write, and last of all
an object `current` that names the folder which counts. Objects have no rename;
a reader sees the whole old version or the whole new one, because it reads the
name once. What an interrupted write left is in a folder that nothing names: a
lifecycle rule of the bucket may remove what is old and not current.

If this fails: whoever can write to the bucket offers other bytes; the loader
compares every plaintext byte with a manifest that the feed pins by digest, and refuses.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate.errors import ConfigurationError, Unavailable
from casemate.transport.local_channel import is_loopback
from services.inference.names import is_name
from services.inference.repository import FILES, MANIFEST, SEALED, WRAPPED_KEY, NotStored, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

SCHEME = "s3://"
_PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*", re.ASCII)
_ENDPOINT = re.compile(r"(https?)://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?/?", re.ASCII)
_FOLDER = re.compile(r"[0-9a-f]{32}", re.ASCII)
_CURRENT = "current"
_BLOCK_BYTES = 8 * 1024 * 1024
_CLIENT = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}}


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """A bucket and the path in it, as `s3://bucket/path`."""

    url: str


def object_place(text: str) -> ObjectPlace:
    """Parses `s3://bucket/path`.

    Raises:
        ValueError: it is none.
    """
    if _PLACE.fullmatch(text) is None:
        raise ValueError('must be "s3://bucket/path"')
    return ObjectPlace(text)


def endpoint(text: str) -> str:
    """Parses the address of an S3 server: over TLS, or on a loopback address.

    Raises:
        ValueError: it is none.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or (match[1] == "http" and not is_loopback(match[2])):
        raise ValueError('must be "https://host:port"; plaintext goes to a loopback address alone')
    return text


def open_object_repository(place: ObjectPlace, *, address: str | None) -> ObjectRepository:
    """The repository in a bucket. Credentials are found as AWS's tools find them.

    Args:
        place: bucket and path.
        address: of the S3 server; None: AWS's own.

    Raises:
        ConfigurationError: this installation has no S3 client.
    """
    try:
        import s3fs  # noqa: PLC0415  # an optional dependency
    except ImportError as error:
        raise ConfigurationError("models in S3 need the extra `s3`: pip install 'casemate[s3]'") from error
    store = s3fs.S3FileSystem(
        endpoint_url=address,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs=_CLIENT,
    )
    return ObjectRepository(store, place.url.removeprefix(SCHEME))


class StoredObjects:
    """One version's folder, whose name was read once."""

    def __init__(self, store: Any, folder: str) -> None:  # noqa: ANN401  # fsspec ships no types
        self._store = store
        self._folder = folder

    def read(self, *parts: str, limit: int) -> bytes:
        """The bytes of an object of at most `limit` bytes.

        Raises:
            NotStored: absent, or longer.
            Unavailable: the store does not answer.
        """
        name = "/".join(parts)
        with _translated(name):
            data: bytes = self._store.cat_file(f"{self._folder}/{name}", start=0, end=limit + 1)
        if len(data) > limit:
            raise NotStored(f"{name}: longer than it may be")
        return data


class ObjectRepository:
    """The versions under one path of a bucket.

    Args:
        store: a synchronous fsspec file system; used from many threads.
        root: bucket and path.
    """

    def __init__(self, store: Any, root: str) -> None:  # noqa: ANN401  # fsspec ships no types
        self._store = store
        self._root = root.rstrip("/")

    @contextlib.contextmanager
    def open(self, slot: Slot) -> Iterator[StoredObjects]:
        """The version's folder for reading.

        Raises:
            NotStored: there is none.
            Unavailable: the store does not answer.
        """
        name = self._current(slot)
        if name is None:
            raise NotStored(f"{slot}: absent")
        yield StoredObjects(self._store, f"{self._place(slot)}/{name}")

    def write(
        self,
        slot: Slot,
        *,
        manifest: bytes,
        wrapped_key: bytes,
        files: Mapping[str, Iterable[bytes]],
        still: Callable[[], None] = lambda: None,
    ) -> None:
        """Stores a version durably; readers see the old folder or the new one, never a mixture.

        Raises:
            Unavailable: the store does not answer; what was there is still there.
        """
        name, place, before = secrets.token_hex(16), self._place(slot), self._current(slot)
        folder = f"{place}/{name}"
        for file, pieces in files.items():
            if not is_name(file):
                raise NotStored("a file name that is no path component")
            with (
                _translated(file),
                self._store.open(f"{folder}/{FILES}/{file}{SEALED}", "wb", block_size=_BLOCK_BYTES) as target,
            ):
                for piece in pieces:
                    target.write(piece)
        with _translated(str(slot)):
            self._store.pipe_file(f"{folder}/{WRAPPED_KEY}", wrapped_key)
            self._store.pipe_file(f"{folder}/{MANIFEST}", manifest)
        try:
            still()
        except BaseException:
            self._forget(folder)
            raise
        with _translated(str(slot)):
            self._store.pipe_file(f"{place}/{_CURRENT}", name.encode())
        if before is not None:
            self._forget(f"{place}/{before}")

    def _forget(self, folder: str) -> None:
        with contextlib.suppress(Exception):  # nothing names it; removing it only saves room
            self._store.rm(folder, recursive=True)

    def slots(self) -> list[Slot]:
        """Every version that is there.

        Raises:
            Unavailable: the store does not answer.
        """
        with _translated(self._root):
            paths: list[str] = self._store.glob(f"{self._root}/*/*/*/{_CURRENT}")
        found = []
        for path in sorted(paths):
            tenant, model, number = path.removeprefix(f"{self._root}/").split("/")[:3]
            with contextlib.suppress(NotStored, ValueError):  # what is not ours
                slot = Slot(tenant, model, int(number))
                if slot.parts == (tenant, model, number):
                    found.append(slot)
        return found

    def replace_wrapped_key(self, slot: Slot, before: bytes, after: bytes) -> bool:
        """Puts a new wrap of the same key in the place of the one that was read; whether that still was there.

        Of two writers either may win: the key inside is the same.
        """
        name = self._current(slot)
        if name is None:
            return False
        folder = f"{self._place(slot)}/{name}"
        try:
            if StoredObjects(self._store, folder).read(WRAPPED_KEY, limit=len(before)) != before:
                return False
        except NotStored:
            return False
        with _translated(str(slot)):
            self._store.pipe_file(f"{folder}/{WRAPPED_KEY}", after)
        return True

    def _current(self, slot: Slot) -> str | None:
        try:
            with _translated(str(slot)):
                data: bytes = self._store.cat_file(f"{self._place(slot)}/{_CURRENT}", start=0, end=64)
        except NotStored:
            return None
        name = data.decode("ascii", "replace")
        if _FOLDER.fullmatch(name) is None:
            raise NotStored(f"{slot}: names no folder of ours")
        return name

    def _place(self, slot: Slot) -> str:
        return "/".join((self._root, *slot.parts))


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotStored(f"{name}: absent") from error
    except NotStored:
        raise
    except Exception as error:  # fsspec's stores raise whatever their clients raise
        raise Unavailable(f"the object store: {type(error).__name__}: {error}") from error
