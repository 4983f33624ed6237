"""A value that does not show itself.

If this fails: a password or a key reaches a log line; files and databases that
hold logs then need the same care as the key files themselves.
"""

from __future__ import annotations

import hmac
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T", str, bytes)


class Secret(Generic[T]):
    """Holds text or bytes that only `reveal` gives out.

    `repr`, `str` and formatting show a placeholder; copying by the serializer
    of the standard library is refused; comparison is in constant time.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: T = value

    def reveal(self) -> T:
        """The value itself. Every call is a place to look at in a review."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, _specification: str) -> str:
        return repr(self)

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret is not serialized")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret does not give its state")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self._value), _bytes(other._value))

    __hash__ = None  # type: ignore[assignment]  # a hash in a set would compare by its bits


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
