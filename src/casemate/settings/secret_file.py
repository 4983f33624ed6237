"""Secrets in files that settings name, read at the start and again when they are needed anew.

If this fails: a service goes on with the secret that it has, until whoever checks it refuses.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from casemate.secret import Secret

_MAX_SECRET_BYTES: Final = 64 * 1024


class FileSecret(Secret[str]):
    """The secret that a file held at the start; `again` is the one that it holds now."""

    __slots__ = ("_file",)

    def __init__(self, value: str, *, file: Path) -> None:
        super().__init__(value)
        self._file = file

    def again(self) -> Secret[str]:
        """The secret as the file has it now; this one, where it cannot be read: it may be about to be replaced."""
        try:
            return FileSecret(read_secret_file(self._file), file=self._file)
        except ValueError:
            return self


def read_secret_file(file: Path) -> str:
    """The one secret in a file, without the newline that editors add.

    Raises:
        ValueError: it cannot be read, is open to every user of the machine, or holds no secret.
    """
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("its file is not a regular file")
            if status.st_mode & stat.S_IRWXO:
                raise ValueError("its file is open to every user of the machine; take those rights away (chmod o-rwx)")
            content = stream.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise ValueError(f"its file cannot be read ({error.strerror})") from None
    if len(content) > _MAX_SECRET_BYTES:
        raise ValueError("its file is too large for a secret")
    try:
        value = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("its file is not UTF-8 text") from None
    if not value:
        raise ValueError("its file is empty")
    return value
