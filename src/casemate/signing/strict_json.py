"""JSON that means one thing: duplicate names, NaN, lone surrogates and deep nesting are refused.

If this fails: two readers of one signed payload see different manifests.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NoReturn

from casemate.errors import FieldViolation, InvalidRequest, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

MAXIMUM_DEPTH: Final = 16


def canonical(value: Mapping[str, object]) -> bytes:
    """The value as UTF-8 JSON: names sorted, no spaces, no NaN. Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_object(data: bytes, *, field: str, maximum_items: int) -> dict[str, object]:
    """The one JSON object that `data` is.

    `maximum_items` bounds its values before any is made: four million bytes of
    empty lists would otherwise become a hundred times as much memory.

    Raises:
        InvalidRequest: `MANIFEST_INVALID` naming `field`; it is not one, or not an unambiguous one.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > maximum_items:
        raise invalid(field, "holds too many values")
    try:
        text = data.decode()  # not left to json, which would also take UTF-16 and UTF-32
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _check(value, MAXIMUM_DEPTH)
    except (ValueError, RecursionError) as error:  # Unicode errors are ValueErrors
        raise invalid(field, "is not unambiguous JSON") from error
    if not isinstance(value, dict):
        raise invalid(field, "is not a JSON object")
    return value


def invalid(field: str, description: str) -> InvalidRequest:
    """The refusal of one field of a statement or envelope."""
    return InvalidRequest(
        f"{field} {description}",
        reason=Reason.MANIFEST_INVALID,
        violations=(FieldViolation(field, description),),
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is there twice")
    return members


def _no_constant(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _check(value: object, depth: int) -> None:
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode()  # a lone surrogate has no bytes: UnicodeEncodeError
    elif isinstance(value, dict):
        for name, member in value.items():
            name.encode()
            _check(member, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
