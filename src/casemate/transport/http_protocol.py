"""HTTP/1.1 as our faces speak it: aiohttp's protocol with small bounds, without a banner, without its own texts.

If this fails: a proven caller makes the process read more, or learns which library it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from casemate.errors import DeadlineExceeded, Exhausted, InvalidRequest, Reason

MAX_LINE_BYTES: Final = 4_096
MAX_FIELD_BYTES: Final = 16_384
"""Of one header: an `Authorization` may carry a token of 4,096 characters and more around it."""
MAX_HEADERS: Final = 64
IDLE: Final = timedelta(seconds=15)
"""For how long a connection may stay without a whole request head: between requests, and within one."""
_LINGER_S: Final = 1.0

_LOGGER = logging.getLogger(__name__)


class Answer(web.Response):
    """A response that does not say which server made it."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class HttpProtocols:
    """Makes the protocols of proven connections, and ends them.

    Args:
        answer: answers one request; never raises.
        malformed: answers what is no HTTP request of ours.
        idle: how long a connection may stay without a whole request head.
    """

    def __init__(
        self,
        *,
        answer: Callable[[web.BaseRequest], Awaitable[Answer]],
        malformed: Callable[[int], Answer],
        idle: timedelta = IDLE,
    ) -> None:
        self._server = web.Server(answer)
        self._malformed = malformed
        self._idle_s = idle.total_seconds()

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one connection."""
        return _Protocol(
            self._server,
            self._malformed,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._idle_s,
            lingering_time=_LINGER_S,
            access_log=None,
            logger=_LOGGER,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
        )

    async def drain(self, grace: timedelta) -> None:
        """Ends idle connections at once, and the others as their requests end, at the latest after `grace`."""
        self._server.pre_shutdown()
        await self._server.shutdown(grace.total_seconds())


class _Protocol(RequestHandler):
    __slots__ = ("_malformed",)

    def __init__(self, server: web.Server, malformed: Callable[[int], Answer], **options: Any) -> None:  # noqa: ANN401  # as inherited
        super().__init__(server, **options)
        self._malformed = malformed

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  # as inherited, here and below
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # may quote what was sent
    ) -> web.StreamResponse:
        """The answer to what could not be read, and to a fault of ours; without aiohttp's texts."""
        if status >= 500:
            _LOGGER.error("an HTTP request ended in a fault", exc_info=exc)
        answer = self._malformed(status)
        answer.force_close()
        return answer


async def read_body(request: web.BaseRequest, *, limit: int, within: timedelta) -> bytes:
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
    if "Transfer-Encoding" in request.headers or "Content-Encoding" in request.headers:
        # Who says a length says where the next request begins, and there is one way to read it.
        raise InvalidRequest("a body in chunks, or compressed")
    length = request.content_length
    if length is not None and length > limit:
        raise Exhausted("body too large", reason=Reason.REQUEST_TOO_LARGE)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    try:
        async with asyncio.timeout(within.total_seconds()):
            return await request.content.read(-1)
    except TimeoutError:
        raise DeadlineExceeded("the body did not arrive") from None
