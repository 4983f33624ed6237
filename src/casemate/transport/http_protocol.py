"""HTTP/1.1 as our faces speak it: aiohttp's parser (llhttp) with small bounds, and nothing else of its server.

A connection's requests are answered one after the other, in a task that lives as long
as there are any. aiohttp's own server makes three objects and two tasks of a request
and writes its answer in four steps; that was a third of what a token cost.

If this fails: a proven caller makes the process read more, or hears an answer to
another request of its own connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from email.utils import formatdate
from typing import Final, TypeAlias

from aiohttp import HttpVersion11, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from casemate.errors import CasemateError, InvalidRequest
from casemate.transport.http_messages import Answer, Request

MAX_LINE_BYTES: Final = 4_096
MAX_FIELD_BYTES: Final = 16_384
"""Of one header: an `Authorization` may carry a token of 4,096 characters and more around it."""
MAX_HEADERS: Final = 64
IDLE: Final = timedelta(seconds=15)
"""For how long a connection may stay without a whole request head: between requests, and within one."""
_LINGER_S: Final = 1.0
_PARSED_AHEAD: Final = 32
"""Requests of one connection that are parsed before they are answered."""
_READ_AHEAD: Final = 65_536
_GO_ON: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_LOGGER = logging.getLogger(__name__)

Answering: TypeAlias = Callable[[Request], Awaitable[Answer]]


class HttpProtocols:
    """Makes the protocols of proven connections, and ends them.

    Args:
        answer: answers one request; never raises.
        malformed: answers what is no HTTP request of ours.
        idle: how long a connection may stay without a whole request head.
    """

    def __init__(self, *, answer: Answering, malformed: Callable[[int], Answer], idle: timedelta = IDLE) -> None:
        self.answer = answer
        self.malformed = malformed
        self.idle_s = idle.total_seconds()
        self._open: set[_Connection] = set()
        self._draining = False
        self._date = (0, "")

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one connection."""
        return _Connection(self, asyncio.get_running_loop())

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._open)

    def opened(self, connection: _Connection) -> None:
        """Takes note of a connection, or ends it at once while all are ended."""
        self._open.add(connection)
        if self._draining:
            connection.end()

    def closed(self, connection: _Connection) -> None:
        """Forgets a connection."""
        self._open.discard(connection)

    def date(self) -> str:
        """Now, as a header has it; spelled once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]

    async def drain(self, grace: timedelta) -> None:
        """Ends idle connections at once, and the others as their requests end, at the latest after `grace`."""
        self._draining = True
        for connection in tuple(self._open):
            connection.end()
        running = {connection.task for connection in self._open if connection.task is not None}
        if running:
            _, late = await asyncio.wait(running, timeout=grace.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


class _Connection(BaseProtocol):
    """One proven connection. What it parses ahead is bounded, and it reads no further before that is answered."""

    def __init__(self, protocols: HttpProtocols, loop: asyncio.AbstractEventLoop) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            _READ_AHEAD,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            payload_exception=InvalidRequest,
            auto_decompress=False,
            max_msg_queue_size=_PARSED_AHEAD,
        )
        super().__init__(loop, parser)
        self.task: asyncio.Task[None] | None = None
        self._protocols = protocols
        self._requests = parser
        self._waiting: deque[tuple[RawRequestMessage, StreamReader] | None] = deque()
        self._arriving: StreamReader = EMPTY_PAYLOAD
        self._known: Mapping[str, Sequence[bytes]] = {}
        self._deaf = self._ending = False
        self._idle_until = 0.0
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._known = _known_of(transport)
        self._await_next()
        self._idle = self._loop.call_at(self._idle_until, self._end_idle)
        self._protocols.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._deaf = True
        if self._idle is not None:
            self._idle.cancel()
        if not self._arriving.is_eof():
            self._arriving.set_exception(InvalidRequest("the connection ended before the body"))
        self._protocols.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf or (self._ending and self._arriving.is_eof()):
            return
        try:
            # The types say tuples of one kind; with a request to go over to another protocol comes what follows it.
            parsed, goes_over, _ = self._requests.feed_data(data)
        except HttpProcessingError:
            self._deaf = True
            self._waiting.append(None)
        else:
            if parsed:
                self._arriving = parsed[-1][1]
                self._waiting.extend(parsed)
            self._deaf = goes_over  # we speak no other protocol: what follows would have two readings
        if not self._waiting:
            return
        if (self.task is not None or len(self._waiting) > 1) and not self._buffer_paused:
            self._pause_reading_for_buffer()
        if self.task is None:
            self.task = self._loop.create_task(self._answer_all())

    def end(self) -> None:
        """Closes at once if no request is being answered; otherwise hears the rest of that one, and closes after it."""
        self._ending = True
        if self.task is None and self.transport is not None:
            self.transport.close()

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                if not await self._answer_next():
                    self._deaf = True
                    break
                if self._buffer_paused and not self._waiting:
                    self._resume_reading_for_buffer()
                    self.data_received(b"")  # what the parser kept back
        except (ConnectionError, TimeoutError):
            self._deaf = True
            if self.transport is not None:
                self.transport.abort()  # it does not read what it is answered
        except BaseException:
            self._deaf = True
            raise
        finally:
            self.task = None
            self._await_next()
            if (self._deaf or self._ending) and self.transport is not None:
                self.transport.close()

    async def _answer_next(self) -> bool:
        """Answers one request; whether the connection goes on."""
        parsed = self._waiting.popleft()
        if parsed is None:
            self._send(self._malformed(400).encode(date=self._protocols.date()))
            return False
        self._requests.message_consumed()
        message, content = parsed
        if self._buffer_paused and not content.is_eof():
            self._resume_reading_for_buffer()  # it is the last that was parsed, and the rest of it is what comes next
        encoded, ends = await self._answer(message, content)
        self._send(encoded)
        if self.writing_paused:
            async with asyncio.timeout(self._protocols.idle_s):
                await self._drain_helper()
        whole = content.is_eof() or await _dropped(content)
        return whole and not ends

    async def _answer(self, message: RawRequestMessage, content: StreamReader) -> tuple[bytes, bool]:
        """An answer as it is sent, and whether the connection ends with it."""
        request = Request(message.method, message.path, message.headers, content, self._known, self._go_on)
        bodiless = message.method == "HEAD"
        try:
            answer = await self._protocols.answer(request)
            # Requests that were parsed already are answered too, and the last of them ends the connection. What came
            # behind a wish for another protocol, the parser has let fall.
            last = (self._deaf or self._ending) and not self._waiting
            if last or message.should_close or message.upgrade or message.version < HttpVersion11:
                answer.ends = True
            return answer.encode(date=self._protocols.date(), bodiless=bodiless), answer.ends
        except Exception:
            _LOGGER.exception("an HTTP request ended in a fault")
            return self._malformed(500).encode(date=self._protocols.date(), bodiless=bodiless), True

    def _malformed(self, status: int) -> Answer:
        answer = self._protocols.malformed(status)
        answer.ends = True
        return answer

    def _send(self, encoded: bytes) -> None:
        if self.transport is None:
            raise ConnectionResetError
        self.transport.write(encoded)

    def _go_on(self) -> None:
        if self.transport is not None:
            self.transport.write(_GO_ON)

    def _await_next(self) -> None:
        self._idle_until = self._loop.time() + self._protocols.idle_s

    def _end_idle(self) -> None:
        if self.task is not None:
            self._await_next()
        if self._loop.time() < self._idle_until:
            self._idle = self._loop.call_at(self._idle_until, self._end_idle)
        else:
            self.end()


async def _dropped(content: StreamReader) -> bool:
    """Reads what is left of a body that nobody wants, so that its sender hears the answer; whether all of it came."""
    try:
        async with asyncio.timeout(_LINGER_S):
            while not content.is_eof():
                await content.readany()
    except (TimeoutError, CasemateError):
        return False
    return True


def _known_of(transport: asyncio.BaseTransport) -> Mapping[str, Sequence[bytes]]:
    """What Python's TLS knows of a connection, by grpcio's names; the group it does not know.

    Read once: in TLS 1.3 nobody shows another certificate later unless we ask, which we never do.
    """
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if connection is None:
        return {}
    leaf, version = connection.getpeercert(binary_form=True), connection.version()
    return {
        "ssl_tls_version": (version.encode(),) if version else (),
        "x509_pem_cert": (ssl.DER_cert_to_PEM_cert(leaf).encode(),) if leaf else (),
    }
