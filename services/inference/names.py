"""Names that may become part of a path, and version numbers as text.

A path is built only from names that passed here, so a name that a client or a
manifest chose cannot leave its directory.

If this fails: a name could point outside the repository; every file is still
opened component by component without following links, and compared with a
signed digest before it is used.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casemate.errors import FieldViolation, InvalidRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Collection

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)

MODEL_FILE = "model.onnx"
"""The one file of a version that is loaded, in this process."""

UPSTREAM_FILE = "upstream.json"
"""Stands in its place where the model runs on a back end."""

ATTACHED_SUFFIXES = (".json", ".txt", ".md")
"""What else a version may carry: text that is never run."""


def is_name(text: str) -> bool:
    """Whether `text` may be part of a path: no separators, no leading dot, at most 128 characters."""
    return _NAME.fullmatch(text) is not None


def require_name(text: str, *, field: str) -> str:
    """Returns `text` when it is a name.

    Raises:
        InvalidRequest: it is not; `field` is named to the caller.
    """
    if not is_name(text):
        raise InvalidRequest(
            f"{field} is no name",
            violations=(FieldViolation(field, "must be 1 to 128 letters, digits, '.', '_' or '-', no dot first"),),
        )
    return text


def is_version_file(text: str) -> bool:
    """Whether a manifest may list a file of this name."""
    return is_name(text) and (text == MODEL_FILE or text.endswith(ATTACHED_SUFFIXES))


def says_what_runs(names: Collection[str]) -> bool:
    """Whether a version of these files has one that says what runs, and not two."""
    return (MODEL_FILE in names) != (UPSTREAM_FILE in names)


def parse_number(text: str) -> int:
    """Returns the number that a request writes as text.

    Raises:
        NotFound: it is not a number; absent and impossible versions answer alike.
    """
    if _NUMBER.fullmatch(text) is None:
        raise NotFound("a version that is not a number")
    return int(text)
