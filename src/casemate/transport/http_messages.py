"""Requests and answers of our HTTP faces, as plain values.

If this fails: a proven caller makes the process read more than it may, or an answer
carries a header that was not meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from casemate.errors import DeadlineExceeded, Exhausted, InvalidRequest, Reason

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from multidict import CIMultiDictProxy

_STATUS_LINES: Final = MappingProxyType({status.value: f"HTTP/1.1 {status} {status.phrase}" for status in HTTPStatus})


@dataclass(frozen=True, slots=True)
class Request:
    """A request of which the head was read.

    Attributes:
        method: as it came.
        raw_path: path and query as they came, nothing unescaped.
        headers: by any spelling of their names.
        content: the body, as far as it has come.
        connection: what TLS knows of the peer, by grpcio's names.
        go_on: tells a client that waits for it (`Expect`) to send its body.
    """

    method: str
    raw_path: str
    headers: CIMultiDictProxy[str]
    content: StreamReader
    connection: Mapping[str, Sequence[bytes]]
    go_on: Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What is answered; length, date and, where it ends, `Connection` are added when it is sent.

    Attributes:
        status: one that RFC 9110 names.
        body: whole.
        headers: all others.
        ends: whether the connection ends with it.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ends: bool = False

    def force_close(self) -> None:
        """Ends the connection with this answer."""
        self.ends = True

    def encode(self, *, date: str, bodiless: bool = False) -> bytes:
        """The answer as it is sent.

        Args:
            date: for its header.
            bodiless: the request was a HEAD: the same headers, nothing after them.

        Raises:
            ValueError: a header has a line break in it, or what is no Latin-1.
        """
        lines = [_STATUS_LINES[self.status]]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", f"Date: {date}"]
        if self.ends:
            lines.append("Connection: close")
        head = "\r\n".join(lines)
        if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
            raise ValueError("a line break in a header")
        return f"{head}\r\n\r\n".encode("latin-1") + (b"" if bodiless else self.body)


async def read_body(request: Request, *, limit: int, within: timedelta) -> bytes:
    """The whole body of a request that says its length.

    Args:
        request: admitted already; it is told to go on if it waits for that.
        limit: the most bytes.
        within: the longest time.

    Raises:
        InvalidRequest: it says no length, or is compressed.
        Exhausted: REQUEST_TOO_LARGE.
        DeadlineExceeded: it did not arrive.
    """
    headers, content = request.headers, request.content
    if "Transfer-Encoding" in headers or "Content-Encoding" in headers:
        # Who says a length says where the next request begins, and there is one way to read it.
        raise InvalidRequest("a body in chunks, or compressed")
    if int(headers.get("Content-Length", 0)) > limit:  # the parser took nothing but digits
        raise Exhausted("body too large", reason=Reason.REQUEST_TOO_LARGE)
    if content.is_eof():  # most come in one piece with their head
        return content.read_nowait(-1)
    if headers.get("Expect", "").lower() == "100-continue":
        request.go_on()
    try:
        async with asyncio.timeout(within.total_seconds()):
            return await content.read(-1)
    except TimeoutError:
        raise DeadlineExceeded("the body did not arrive") from None
