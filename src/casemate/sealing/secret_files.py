"""Secrets in files: one a file, in a folder or named by the environment.

Whoever rotates one puts the new file in place by rename, as Kubernetes does for mounted
secrets; a file that is written in place may be read half.

If this fails: a secret is taken from a file that every user of the machine can read or
write; whoever reads it still needs a way to where it is used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from casemate.errors import ConfigurationError
from casemate.sealing.private_files import read_private
from casemate.secret import Secret

# One file of the folder and no other: no separator, no "..", none of Kubernetes' hidden folders.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)


class FileSecrets:
    """The files of one folder, each named as its secret. Implements `secret_source.SecretSource`.

    Args:
        directory: the folder, such as a mounted Kubernetes secret.
    """

    __slots__ = ("_directory",)

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def read(self, name: str) -> Secret[bytes]:
        """See `SecretSource`. One line end at the end is taken off; a value with its own is kept in base64.

        Raises:
            ConfigurationError: the name is no file's, or the file is missing, empty, over 64 KiB, or open to others
                than its owner and group.
        """
        if _FILE_NAME.fullmatch(name) is None:
            raise ConfigurationError("a secret's name is letters, digits, '.', '_' and '-'")
        return await _read(self._directory / name, name)


class EnvironmentSecrets:
    """Files that `<NAME>_FILE` variables name. Implements `secret_source.SecretSource`.

    A value in the environment itself is refused: child processes inherit it, and it does not change.

    Args:
        environment: the process's environment.
    """

    __slots__ = ("_environment",)

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def read(self, name: str) -> Secret[bytes]:
        """See `SecretSource`; `name` without its `_FILE`. Otherwise as `FileSecrets.read`.

        Raises:
            ConfigurationError: `<name>_FILE` is not set, `<name>` is, or the file is as in `FileSecrets.read`.
        """
        if name in self._environment:
            raise ConfigurationError(f"{name} holds a secret in the environment; put it in a file and set {name}_FILE")
        file = self._environment.get(f"{name}_FILE")
        if not file:
            raise ConfigurationError(f"{name}_FILE is not set")
        return await _read(Path(file), name)


async def _read(path: Path, name: str) -> Secret[bytes]:
    content = await asyncio.to_thread(read_private, path, what=f"the file of secret {name}", group_may_read=True)
    value = content.removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise ConfigurationError(f"the file of secret {name} is empty: {path}")
    return Secret(value)
