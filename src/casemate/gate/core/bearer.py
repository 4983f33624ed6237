"""The one token of a call's metadata.

If this fails: two readers of one call judge two tokens, and the better one counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.errors import Reason, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterable

_AUTHORIZATION: Final = "authorization"
_AUTHORIZATION_BYTES: Final = "authorization-bin"
_SCHEME: Final = "bearer "
_SCHEME_LENGTH: Final = len(_SCHEME)


def bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token, not verified.

    Two values are refused even when they are the same: which of them counts would
    depend on who reads.

    Raises:
        Unauthenticated: none, more than one, or not a bearer token.
    """
    found: str | bytes | None = None
    for key, value in metadata:
        if key == _AUTHORIZATION:
            if found is not None:
                raise Unauthenticated("more than one authorization entry")
            found = value
        elif key == _AUTHORIZATION_BYTES:
            raise Unauthenticated("authorization as bytes")
    if found is None:
        raise Unauthenticated("no authorization entry", reason=Reason.TOKEN_MISSING)
    if not isinstance(found, str) or found[:_SCHEME_LENGTH].lower() != _SCHEME:
        raise Unauthenticated("authorization is not a bearer token")
    return found[_SCHEME_LENGTH:]
