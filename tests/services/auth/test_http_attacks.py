"""Whoever means harm at the HTTPS face: strangers, proven callers who misbehave, and one twin that is served."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import trust_pb2
from casemate.errors import Exhausted
from casemate.transport.http_protocol import MAX_FIELD_BYTES, MAX_HEADERS, MAX_LINE_BYTES
from casemate.transport.https import HttpsLimits
from services.auth.http_face import FacePace
from services.auth.http_forms import MAX_BODY_BYTES
from tests.services.auth.http_world import FORM, shared_face
from tests.services.auth.world import SOON, failure, spiffe_id

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}
ISSUE = {"grant_type": "client_credentials", "audience": "inference"}
GOOD = b"grant_type=client_credentials&audience=inference"
LIMITS = HttpsLimits(handshake=timedelta(seconds=1), strangers=8, of_one=4)
PACE = FacePace(idle=timedelta(milliseconds=400), body=timedelta(milliseconds=300), limits=LIMITS)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def face(embedded_postgres, leaf, tmp_path_factory):
    state = tmp_path_factory.mktemp("face")
    async with shared_face(embedded_postgres, leaf, state, face=PACE) as shared:
        await shared.world.enlist(shared.operator, "acme", "job", **INFERENCE)
        yield shared


async def is_served(face, name="job"):
    line = await face.client("acme", name)
    reply = await line.post("/oauth2/token", ISSUE)
    line.writer.close()
    return reply.status == 200


async def refused(face, directory: Path, **change):
    """Whether this holder of a certificate, or of none, is not spoken to at all."""
    try:
        line = await face.line(directory, **change)
        await line.say("GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n")
        await line.hear()
    except (OSError, asyncio.IncompleteReadError):
        return True
    return False


async def test_plaintext_is_not_answered(face):
    line = await face.plain()
    await line.say("GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(SOON):
        heard = await line.reader.read()
    assert not heard.startswith(b"HTTP")
    assert await is_served(face)


@pytest.mark.parametrize("kind", ["wrong-ca", "expired", "not-yet-valid", "server-auth-only"])
async def test_a_certificate_that_tls_does_not_take_is_not_spoken_to(face, kind):
    assert await refused(face, face.world.leaf(kind))
    assert not await refused(face, face.world.leaf("sound"))


async def test_tls_1_2_and_no_certificate_are_not_spoken_to(face):
    job = face.world.leaf("client", tenant="acme", name="job")
    assert await refused(face, job, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert await refused(face, job, certificate=False)
    assert not await refused(face, job, minimum_version=ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("kind", ["no-eku", "two-uris", "no-uri", "wrong-domain", "ca-leaf"])
async def test_a_certificate_that_names_nobody_proves_nobody(face, kind):
    line = await face.line(face.world.leaf(kind))
    for path in ("/.well-known/jwks.json", "/nothing"):
        assert (await line.get(path)).error == (401, "invalid_client")
    assert (await line.post("/oauth2/token", ISSUE)).error == (401, "invalid_client")
    sound = await face.line(face.world.leaf("sound"))
    assert (await sound.get("/.well-known/jwks.json")).status == 200


async def test_a_revoked_spiffe_id_is_refused_on_its_open_connection(face):
    await face.world.enlist(face.operator, "acme", "stolen", **INFERENCE)
    line = await face.client("acme", "stolen")
    assert (await line.post("/oauth2/token", ISSUE)).status == 200
    revoke = admin.RevokeRequest(kind=trust_pb2.REVOCATION_KIND_SPIFFE_ID, value=spiffe_id("acme", "stolen"))
    await face.operator.administer("Revoke", revoke)
    async with asyncio.timeout(SOON):
        while (reply := await line.post("/oauth2/token", ISSUE)).status == 200:
            await asyncio.sleep(0.01)
    assert reply.error == (401, "invalid_client")
    assert await is_served(face)


async def test_no_session_ticket_is_given(face):
    line = await face.client("acme", "job")
    assert (await line.get("/.well-known/jwks.json")).status == 200
    connection = line.writer.get_extra_info("ssl_object")
    assert connection.version() == "TLSv1.3"
    assert connection.session is None or not connection.session.has_ticket


@pytest.mark.parametrize(
    "head",
    [
        "GET /{line} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nX-Long: {field}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n",
    ],
)
async def test_a_head_that_is_too_long_ends_its_connection_and_one_below_is_read(face, head):
    job = await face.client("acme", "job")

    def filled(more):
        line, field = "a" * (MAX_LINE_BYTES - 200 + more), "a" * (MAX_FIELD_BYTES - 200 + more)
        many = "".join(f"X-{number}: 1\r\n" for number in range(MAX_HEADERS - 4 + more // 100))
        return head.format(line=line, field=field, many=many)

    await job.say(filled(0))
    assert (await job.hear()).status == 404
    await job.say(filled(1000))
    reply = await job.hear()
    assert (reply.status, reply.json) == (400, {"error": "invalid_request"})
    assert await job.is_ended()


async def test_a_body_that_is_too_long_is_refused_before_it_is_read(face):
    job = await face.client("acme", "job")
    await job.say(
        f"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 1000000000\r\n\r\n"
    )
    assert (await job.hear()).error == (413, "invalid_request")
    assert await job.is_ended()
    job = await face.client("acme", "job")
    full = GOOD + b"&x=" + b"a" * (MAX_BODY_BYTES - len(GOOD) - 3)
    assert (await job.ask("POST", "/oauth2/token", full)).status == 200
    assert (await job.ask("POST", "/oauth2/token", full + b"a")).error == (413, "invalid_request")


SMUGGLED = "POST /oauth2/revoke HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "shape",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "Content-Length: 4\r\nContent-Length: 48\r\n\r\n" + SMUGGLED,
        "Content-Length: 48, 48\r\n\r\n" + SMUGGLED,
        "Content-Length: +48\r\n\r\n" + SMUGGLED,
        "Content-Length: 0x30\r\n\r\n" + SMUGGLED,
        "Content-Length: -1\r\n\r\n" + SMUGGLED,
        "Content-Length : 48\r\n\r\n" + SMUGGLED,
        "Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        " folded: x\r\nContent-Length: 0\r\n\r\n" + SMUGGLED,
    ],
)
async def test_a_request_with_two_readings_gives_no_token(face, shape):
    job = await face.client("acme", "job")
    await job.say(f"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n{shape}")
    reply = await job.hear()
    assert reply.error == (400, "invalid_request")
    assert b"access_token" not in reply.body


async def test_pipelined_requests_are_answered_in_their_order(face):
    job = await face.client("acme", "job")
    one = f"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(GOOD)}\r\n\r\n"
    await job.say((one.encode() + GOOD) * 3 + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [(await job.hear()).status for _ in range(4)] == [200, 200, 200, 404]


async def test_a_compressed_body_is_not_opened(face):
    job = await face.client("acme", "job")
    reply = await job.ask("POST", "/oauth2/token", GOOD, Content_Encoding="gzip")
    assert reply.error == (400, "invalid_request")
    assert (await job.ask("POST", "/oauth2/token", GOOD)).status == 200


async def test_a_body_that_does_not_come_is_not_waited_for(face):
    job = await face.client("acme", "job")
    head = f"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(GOOD)}\r\n\r\n"
    await job.say(head.encode() + GOOD[:10])
    assert (await job.hear()).status == 408
    assert await job.is_ended()
    job = await face.client("acme", "job")
    await job.say(head.encode() + GOOD[:10])
    await job.say(GOOD[10:])
    assert (await job.hear()).status == 200


async def test_a_head_that_trickles_ends_and_so_does_a_connection_that_says_nothing(face):
    for beginning in ("", "GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n"):
        line = await face.client("acme", "job")
        await line.say(beginning or b"")
        assert await line.is_ended()
    assert await is_served(face)


async def test_silent_strangers_end_and_never_keep_a_caller_out(face):
    silent = [await face.plain() for _ in range(4 * LIMITS.strangers)]
    assert await is_served(face)
    for line in silent:
        assert await line.is_ended()
    # One that dribbles a handshake has as long as one that says nothing.
    slow = await face.plain()
    await slow.say(b"\x16\x03\x01")
    assert await slow.is_ended()


async def test_one_certificate_has_its_share_of_connections_and_another_has_its_own(face):
    directory = face.world.leaf("client", tenant="acme", name="job")
    lines = [await face.line(directory) for _ in range(LIMITS.of_one)]
    for line in lines:
        assert (await line.get("/.well-known/jwks.json")).status == 200
    assert await refused(face, directory)
    assert await is_served(face)
    lines[0].writer.close()
    await lines[0].writer.wait_closed()
    async with asyncio.timeout(SOON):
        while await refused(face, directory):
            await asyncio.sleep(0.01)


async def test_e7_a_flood_of_bad_attempts_slows_its_own_identity_alone_on_both_faces(face):
    attacker = await face.world.enlist(face.operator, "acme", "attacker", **INFERENCE)
    line = await face.client("acme", "attacker")
    guess = {**ISSUE, "client_id": "acme-job", "client_secret": "guess"}
    replies = [await line.post("/oauth2/token", guess) for _ in range(40)]
    assert {reply.error for reply in replies[:10]} == {(401, "invalid_client")}
    slowed = replies[-1]
    assert slowed.error == (429, "temporarily_unavailable")
    assert int(slowed.header("Retry-After")) >= 1
    assert (await line.post("/oauth2/token", ISSUE)).status == 429
    assert isinstance(await failure(attacker.token("inference")), Exhausted)
    assert await is_served(face)


@pytest.mark.long
async def test_e7_ten_thousand_bad_attempts_over_the_wire_slow_their_own_identity_alone(face):
    """Over four connections, each guess another; every token that another client asks for meanwhile is given."""
    await face.world.enlist(face.operator, "acme", "guesser", **INFERENCE)
    directory = face.world.leaf("client", tenant="acme", name="guesser")
    own = face.world.leaf("client", tenant="acme", name="job")
    heard: list[int] = []

    async def guess():
        status = _asking(face, directory)
        guesses = ({**ISSUE, "client_id": "acme-job", "client_secret": f"{n}"} for n in range(10_000 // LIMITS.of_one))
        heard.extend([await status(one) for one in guesses])

    guessing = asyncio.gather(*(guess() for _ in range(LIMITS.of_one)))
    given, status = [], _asking(face, own)
    while not guessing.done():
        given.append(await status(ISSUE))
        await asyncio.sleep(0.01)
    await guessing
    assert len(heard) == 10_000
    assert set(heard) == {401, 429}
    assert heard.count(401) < 40, "the rest was not even looked at"
    assert len(given) > 20
    assert set(given) == {200}


def _asking(face, directory):
    """Asks for a token and says the status; on a new connection when a busy machine let the old one end."""
    line = None

    async def status(form):
        nonlocal line
        while True:
            try:
                line = line or await face.line(directory)
                return (await line.post("/oauth2/token", form)).status
            except (OSError, asyncio.IncompleteReadError):
                line = None

    return status
