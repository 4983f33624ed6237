"""Canonical bytes: one value, one spelling, no two values the same.

If this fails: two contexts share an encoding, and bytes sealed for one open for
the other. The signed root and the count of a dataset would still disagree.
"""

from __future__ import annotations

import struct

from casemate.errors import StoredDataUnreadable

_U32 = struct.Struct(">I")


def length_prefixed(*parts: bytes) -> bytes:
    """Every part behind its length in four big-endian bytes, so that no boundary can move."""
    return b"".join(_U32.pack(len(part)) + part for part in parts)


class Reader:
    """Takes fields off stored bytes, in order, and refuses whatever does not fit.

    Args:
        data: the stored bytes.
        what: what they are, for the log.
    """

    __slots__ = ("_data", "_offset", "_what")

    def __init__(self, data: bytes, *, what: str) -> None:
        self._data = data
        self._offset = 0
        self._what = what

    def take(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            StoredDataUnreadable: fewer are left.
        """
        end = self._offset + length
        if end > len(self._data):
            raise StoredDataUnreadable(f"{self._what} is cut short")
        part = self._data[self._offset : end]
        self._offset = end
        return part

    def u32(self) -> int:
        """The next four bytes as a big-endian number."""
        number: int = _U32.unpack(self.take(4))[0]
        return number

    def prefixed(self) -> bytes:
        """The next part, behind its length."""
        return self.take(self.u32())

    def end(self) -> None:
        """Nothing is left.

        Raises:
            StoredDataUnreadable: something is.
        """
        if self._offset != len(self._data):
            raise StoredDataUnreadable(f"{self._what} has bytes after its end")
