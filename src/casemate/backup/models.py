"""The sealed models of a backup: in a folder, or in a bucket that inference's replicas share.

Either gives and takes `tenant/model/number` and the files below it, so that what was
backed up from one may be restored to the other. In a bucket, `current` beside a
version's folders names the one that counts (see `services.inference.object_repository`).

If this fails: a model is missing after a restore, or other bytes are; inference
compares all of them with a signed manifest, and refuses.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from casemate.backup.folder import reader
from casemate.errors import CasemateError, ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEME: Final = "s3://"
_CURRENT: Final = "current"
_FOLDER: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_HIDDEN: Final = "."  # versions that inference is writing or discarding
_BLOCK_BYTES: Final = 8 * 1024 * 1024
_CLIENT: Final = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A path in an object store.

    Attributes:
        url: `s3://bucket/path`.
        endpoint: of the server; None: AWS's own.
    """

    url: str
    endpoint: str | None = None

    def __str__(self) -> str:
        return self.url


class Models(Protocol):
    """Where sealed models lie."""

    def versions(self) -> list[str]:
        """Every version that is whole, as `tenant/model/number`, in order."""

    def files(self, version: str) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        """The files of a version: their names, and how to open each.

        Raises:
            FileNotFoundError: it is gone, or went while it was read.
        """

    def has(self, version: str) -> bool:
        """Whether a version is there."""

    def write(self, version: str, files: Sequence[tuple[str, Callable[[], Iterable[bytes]]]]) -> None:
        """Puts a version where none of that number is."""

    def is_empty(self) -> bool:
        """Whether nothing is there, be it a version or not."""


def open_models(place: Path | Bucket) -> Models:
    """What a place holds. Credentials of a bucket are found as AWS's tools find them.

    Raises:
        ConfigurationError: this installation has no client of object stores.
    """
    if isinstance(place, Path):
        return _FolderModels(place)
    try:
        import s3fs  # noqa: PLC0415  # an optional dependency
    except ImportError as error:
        raise ConfigurationError("models in S3 need the extra `s3`: pip install 'casemate[s3]'") from error
    store = s3fs.S3FileSystem(
        endpoint_url=place.endpoint, use_listings_cache=False, skip_instance_cache=True, config_kwargs=_CLIENT
    )
    return _BucketModels(store, place.url.removeprefix(SCHEME).rstrip("/"))


class _FolderModels:
    """Below a folder of this machine, or of one that is mounted."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def versions(self) -> list[str]:
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob("[!.]*/[!.]*/[!.]*"))

    def files(self, version: str) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        folder = self._root / version
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            name = file.relative_to(folder)
            if not any(part.startswith(_HIDDEN) for part in name.parts):
                yield name.as_posix(), reader(file)

    def has(self, version: str) -> bool:
        return (self._root / version).exists()

    def write(self, version: str, files: Sequence[tuple[str, Callable[[], Iterable[bytes]]]]) -> None:
        for name, read in files:
            target = self._root / version / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with target.open("xb") as stream:
                target.chmod(0o600)
                for piece in read():
                    stream.write(piece)

    def is_empty(self) -> bool:
        return not self._root.exists() or (self._root.is_dir() and not any(self._root.iterdir()))


class _BucketModels:
    """Below a path of a bucket. A version's folder counts once `current` names it."""

    def __init__(self, store: Any, root: str) -> None:  # noqa: ANN401  # fsspec ships no types
        self._store = store
        self._root = root

    def versions(self) -> list[str]:
        with _translated(self._root):
            found: list[str] = self._store.glob(f"{self._root}/*/*/*/{_CURRENT}")
        return sorted(path.removeprefix(f"{self._root}/").removesuffix(f"/{_CURRENT}") for path in found)

    def files(self, version: str) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
        with _translated(version):
            name = self._store.cat_file(f"{self._root}/{version}/{_CURRENT}", start=0, end=64).decode(
                "ascii", "replace"
            )
            if _FOLDER.fullmatch(name) is None:
                raise ConfigurationError(f"{version}: `{_CURRENT}` in the bucket names no folder of ours")
            folder = f"{self._root}/{version}/{name}"
            found: list[str] = sorted(self._store.find(folder))
        if not found:
            raise FileNotFoundError(version)  # a second write of the version took its place meanwhile
        for path in found:
            yield path.removeprefix(f"{folder}/"), partial(self._open, path)

    def has(self, version: str) -> bool:
        with _translated(version):
            there: bool = self._store.exists(f"{self._root}/{version}/{_CURRENT}")
        return there

    def write(self, version: str, files: Sequence[tuple[str, Callable[[], Iterable[bytes]]]]) -> None:
        name = secrets.token_hex(16)
        for file, read in files:
            with (
                _translated(file),
                self._store.open(f"{self._root}/{version}/{name}/{file}", "wb", block_size=_BLOCK_BYTES) as target,
            ):
                for piece in read():
                    target.write(piece)
        with _translated(version):
            self._store.pipe_file(f"{self._root}/{version}/{_CURRENT}", name.encode())

    def is_empty(self) -> bool:
        with _translated(self._root):
            return not self._store.find(self._root)

    def _open(self, path: str) -> IO[bytes]:
        with _translated(path):
            stream: IO[bytes] = self._store.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")
        return stream


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, CasemateError):
        raise
    except Exception as error:  # fsspec's stores raise whatever their clients raise
        raise Unavailable(f"the object store, at {name}: {type(error).__name__}") from error
