"""A connection of our HTTP faces: one request after the other, and an end that both sides know of."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import pytest_asyncio

from casemate.transport.http_messages import Answer, read_body
from tests.gate.faces import LIMIT_S, opened

BIG = b"x" * 8_000_000


class Behind:
    """What a face asks here: the path says what becomes of the request."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.asked = []

    async def __call__(self, request):
        self.asked.append(request.raw_path)
        match request.raw_path:
            case "/fault":
                raise RuntimeError("its text stays here")
            case "/big":
                return Answer(body=BIG)
            case "/split":
                return Answer(headers={"X-Split": "a\r\nSet-Cookie: b"})
            case "/forever":
                self.begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()
            case "/body":
                self.begun.set()
                try:
                    return Answer(body=await read_body(request, limit=100, within=timedelta(seconds=LIMIT_S)))
                finally:
                    self.ended.set()
        return Answer(body=request.raw_path.encode())


@pytest.fixture
def behind():
    return Behind()


@pytest_asyncio.fixture
async def face(leaf, behind):
    async with opened(leaf("service", service="datasets"), behind, idle=timedelta(seconds=2)) as (face, *_):
        yield face


@pytest.fixture
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


def get(path, *lines, version="1.1", method="GET"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *lines, "", ""]).encode()


async def hear(line):
    """Status, headers by lower-case name, and body of the next answer."""
    async with asyncio.timeout(LIMIT_S):
        first, *rest = (await line[0].readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        named = {name.lower(): value for name, value in (one.split(": ", 1) for one in rest)}
        return int(first.split()[1]), named, await line[0].readexactly(int(named["content-length"]))


async def is_ended(line):
    async with asyncio.timeout(LIMIT_S):
        try:
            return await line[0].read(1) == b""
        except OSError:
            return True


async def test_many_requests_at_once_are_all_answered_in_their_order(face, trainer):
    line = await face.line(trainer)
    paths = [f"/{number}" for number in range(300)]
    line[1].write(b"".join(get(path) for path in paths))
    assert [(await hear(line))[2].decode() for _ in paths] == paths
    line[1].write(get("/after"))
    assert (await hear(line))[2] == b"/after"


async def test_a_body_that_comes_late_is_that_of_its_own_request(face, trainer, behind):
    line = await face.line(trainer)
    line[1].write(get("/body", "Content-Length: 4", method="POST"))
    await behind.begun.wait()
    line[1].write(b"four" + get("/next"))
    assert [(await hear(line))[2] for _ in range(2)] == [b"four", b"/next"]


async def test_a_body_is_waited_for_though_its_head_came_while_another_request_was_answered(face, trainer, behind):
    line = await face.line(trainer)
    line[1].write(get("/body", "Content-Length: 4", method="POST"))
    await behind.begun.wait()
    behind.begun.clear()
    line[1].write(b"four" + get("/body", "Content-Length: 4", method="POST") + b"fi")
    assert (await hear(line))[2] == b"four"
    await behind.begun.wait()
    line[1].write(b"ve")
    assert (await hear(line))[2] == b"five"


@pytest.mark.parametrize(
    ("request_", "ends"),
    [
        (get("/", "Connection: close"), True),
        (get("/", version="1.0"), True),
        (get("/", "Connection: keep-alive", version="1.0"), True),
        (get("/", "Connection: Upgrade", "Upgrade: websocket") + b"anything", True),
        (get("/", "Connection: Upgrade", "Upgrade: h2c") + get("/let-fall"), True),
        (get("/", "Upgrade: h2c"), False),
        (get("/", "Connection: keep-alive"), False),
    ],
)
async def test_an_answer_says_whether_its_connection_ends_and_so_it_does(face, trainer, request_, ends):
    line = await face.line(trainer)
    line[1].write(request_)
    status, headers, _ = await hear(line)
    assert (status, headers.get("connection")) == (200, "close" if ends else None)
    if ends:
        assert await is_ended(line)
    else:
        line[1].write(get("/again"))
        assert (await hear(line))[2] == b"/again"


async def test_requests_that_came_with_one_that_ends_are_answered_and_what_follows_it_is_refused(face, trainer, behind):
    line = await face.line(trainer)
    line[1].write(get("/1") + get("/2", "Connection: close"))
    assert [(await hear(line))[2] for _ in range(2)] == [b"/1", b"/2"]
    assert await is_ended(line)
    line = await face.line(trainer)
    line[1].write(get("/3", "Connection: close") + get("/4"))
    assert (await hear(line))[0] == 400
    assert await is_ended(line)
    assert behind.asked == ["/1", "/2"]


async def test_a_fault_is_logged_and_told_without_its_text(face, trainer, caplog):
    line = await face.line(trainer)
    line[1].write(get("/fault"))
    status, headers, body = await hear(line)
    assert (status, headers["connection"], body) == (500, "close", b"")
    assert await is_ended(line)
    assert "an HTTP request ended in a fault" in caplog.text
    assert (await _once(face, trainer, "/sound"))[0] == 200


async def _once(face, directory, path):
    line = await face.line(directory)
    line[1].write(get(path))
    return await hear(line)


def test_a_header_of_an_answer_has_no_line_break():
    with pytest.raises(ValueError, match="line break"):
        Answer(headers={"X": "a\r\nSet-Cookie: b"}).encode(date="now")
    assert b"X: a\r\n" in Answer(headers={"X": "a"}).encode(date="now")


async def test_what_cannot_be_sent_ends_the_connection_and_says_nothing(face, trainer):
    line = await face.line(trainer)
    line[1].write(get("/split"))
    status, headers, _ = await hear(line)
    assert (status, headers["connection"]) == (500, "close")
    assert "set-cookie" not in headers
    assert await is_ended(line)


async def test_who_does_not_read_its_answers_is_not_waited_for_and_who_reads_late_is(leaf, trainer, behind):
    idle = timedelta(seconds=1)
    async with opened(leaf("service", service="datasets"), behind, idle=idle) as (face, _, _, protocols):
        line = await face.line(trainer)
        line[1].transport.pause_reading()
        line[1].write(get("/big") * 4)
        async with asyncio.timeout(LIMIT_S):
            while not behind.asked or len(protocols):
                await asyncio.sleep(0.01)
        assert len(behind.asked) < 4
        line[1].transport.abort()
        face.writers.clear()  # a writer that reads nothing never hears that it is closed
        line = await face.line(trainer)
        line[1].write(get("/big") * 2)
        assert [(await hear(line))[2] for _ in range(2)] == [BIG, BIG]


async def test_a_peer_that_leaves_within_its_body_is_not_waited_for(face, trainer, behind, caplog):
    line = await face.line(trainer)
    line[1].write(get("/body", "Content-Length: 4", method="POST") + b"tw")
    await behind.begun.wait()
    line[1].transport.abort()
    async with asyncio.timeout(LIMIT_S / 2):
        await behind.ended.wait()
    assert "Task exception" not in caplog.text


async def test_a_body_under_way_when_the_face_ends_is_heard_and_what_comes_after_it_is_not(leaf, trainer, behind):
    async with opened(leaf("service", service="datasets"), behind) as (face, _, server, protocols):
        line = await face.line(trainer)
        line[1].write(get("/body", "Content-Length: 4", method="POST"))
        await behind.begun.wait()
        server.close()
        draining = asyncio.create_task(protocols.drain(timedelta(seconds=LIMIT_S)))
        await asyncio.sleep(0)  # it has begun
        line[1].write(b"four")
        status, headers, body = await hear(line)
        assert (status, headers["connection"], body) == (200, "close", b"four")
        line[1].write(get("/after"))
        assert await is_ended(line)
        await draining
    assert behind.asked == ["/body"]


async def test_a_request_that_goes_on_after_the_grace_is_ended(leaf, trainer, behind):
    async with opened(leaf("service", service="datasets"), behind) as (face, _, server, protocols):
        line = await face.line(trainer)
        line[1].write(get("/forever"))
        await behind.begun.wait()
        server.close()
        async with asyncio.timeout(LIMIT_S):
            await protocols.drain(timedelta(seconds=0.05))
        assert behind.ended.is_set()
        assert await is_ended(line)
