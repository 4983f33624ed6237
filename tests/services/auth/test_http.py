"""OAuth over HTTPS in the words of its RFCs: forms, answers, and what is refused beside what is not."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from urllib.parse import quote

import jwt
import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from services.auth.http_endpoints import GRANT_EXCHANGE
from services.auth.http_forms import ASSERTION_TYPE, MAX_BODY_BYTES
from tests.services.auth.http_world import FORM, shared_face
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.services.auth.world import SOON

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer", "reflection")}
ISSUE = {"grant_type": "client_credentials", "audience": "inference"}
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS = "urn:ietf:params:oauth:token-type:access_token"
REFRESH = "urn:ietf:params:oauth:token-type:refresh_token"
CHALLENGE = 'Basic realm="casemate", charset="UTF-8"'


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def face(embedded_postgres, leaf, tmp_path_factory):
    async with shared_face(embedded_postgres, leaf, tmp_path_factory.mktemp("face")) as shared:
        for name in ("job", "other", "gateway"):
            await shared.world.enlist(shared.operator, "acme", name, **INFERENCE)
        yield shared


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idp(face):
    """An external issuer for whose subjects the gateway may speak."""
    signatory = Signatory(kid="k1")
    request = credentials.RegisterIssuerRequest(issuer=issuer_message(signatory))
    await face.operator.administer("RegisterIssuer", request)
    await face.operator.administer("CreateExchangeGrant", exchange_grant())
    return signatory


async def by_secret(face, name):
    """A client that shows a secret, its connection, and the secret."""
    await face.world.enlist(face.operator, "acme", name, authentication=admin.CLIENT_AUTHENTICATION_SECRET, **INFERENCE)
    request = credentials.CreateClientSecretRequest(client_id=f"acme-{name}")
    made = await face.operator.administer("CreateClientSecret", request)
    return await face.client("acme", name), made.secret


def basic(client_id, secret):
    text = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return "Basic " + base64.b64encode(text.encode()).decode()


async def test_a_token_is_answered_as_rfc_6749_has_it_and_never_kept(face):
    job = await face.client("acme", "job")
    reply = await job.token(scope="models.infer")
    assert reply.status == 200
    assert (reply.header("Cache-Control"), reply.header("Pragma")) == ("no-store", "no-cache")
    assert reply.header("Content-Type") == "application/json"
    assert reply.json.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (reply.json["token_type"], reply.json["scope"]) == ("Bearer", "models.infer")
    token = face.world.verified(reply.json["access_token"], "inference")
    assert 0 < reply.json["expires_in"] <= (token.expires_at - datetime.now(UTC)).total_seconds() + 1
    assert "refresh_token" not in reply.json


async def test_the_same_words_by_name_and_by_url_name_one_audience(face):
    job = await face.client("acme", "job")
    by_url = {"grant_type": "client_credentials", "resource": "https://inference.casemate.internal"}
    assert (await job.post("/oauth2/token", by_url)).status == 200
    assert (await job.post("/oauth2/token", {**by_url, "audience": "inference"})).status == 200
    for wrong in (
        {**by_url, "audience": "datasets"},
        {**by_url, "resource": "https://inference.elsewhere.example"},
        {**by_url, "resource": "inference.casemate.internal"},
        {**by_url, "resource": "https://nowhere.casemate.internal"},
        {**ISSUE, "audience": "nowhere"},
    ):
        assert (await job.post("/oauth2/token", wrong)).error == (400, "invalid_target")
    assert (await job.post("/oauth2/token", {"grant_type": "client_credentials"})).error == (400, "invalid_request")


async def test_a_secret_is_shown_in_the_body_or_in_the_header_and_nowhere_twice(face):
    batch, secret = await by_secret(face, "batch")
    body = {"client_id": "acme-batch", "client_secret": secret}
    header = basic("acme-batch", secret)
    assert (await batch.post("/oauth2/token", {**ISSUE, **body})).status == 200
    assert (await batch.post("/oauth2/token", ISSUE, Authorization=header)).status == 200
    assert (await batch.post("/oauth2/token", {**ISSUE, "client_id": "acme-batch"}, Authorization=header)).status == 200
    # RFC 6749 section 2.3: more than one way at once is an invalid request.
    twice = await batch.post("/oauth2/token", {**ISSUE, **body}, Authorization=header)
    other = await batch.post("/oauth2/token", {**ISSUE, "client_id": "acme-job"}, Authorization=header)
    mixed = {**ISSUE, **body, "client_assertion": "x.y.z", "client_assertion_type": ASSERTION_TYPE}
    assert {twice.error, other.error, (await batch.post("/oauth2/token", mixed)).error} == {(400, "invalid_request")}
    for assertion in (
        {"client_assertion": "x.y.z"},
        {"client_assertion_type": ASSERTION_TYPE},
        {
            "client_assertion": "x.y.z",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer",
        },
    ):
        assert (await batch.post("/oauth2/token", {**ISSUE, **assertion})).error == (400, "invalid_request")
    address = await batch.post(f"/oauth2/token?client_secret={secret}", ISSUE)
    assert address.error == (400, "invalid_request")


async def test_e1_unknown_wrong_and_disabled_get_one_answer_to_the_byte(face):
    batch, secret = await by_secret(face, "second")
    wrong = secret[:-1] + ("y" if secret.endswith("x") else "x")
    replies = [
        await batch.post("/oauth2/token", ISSUE, Authorization=basic("acme-second", wrong)),
        await batch.post("/oauth2/token", ISSUE, Authorization=basic("nobody", secret)),
        await batch.post("/oauth2/token", {**ISSUE, "client_id": "nobody", "client_secret": secret}),
        await batch.post("/oauth2/token", {**ISSUE, "client_id": "nobody\x00", "client_secret": secret}),
        await batch.post("/oauth2/token", ISSUE, Authorization="Basic !!!"),
        await batch.post("/oauth2/token", ISSUE, Authorization="Bearer x"),
        await batch.post("/oauth2/token", ISSUE),
    ]
    assert (await batch.post("/oauth2/token", ISSUE, Authorization=basic("acme-second", secret))).status == 200
    await face.operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-second"))
    replies.append(await batch.post("/oauth2/token", ISSUE, Authorization=basic("acme-second", secret)))
    assert {reply.error for reply in replies} == {(401, "invalid_client")}
    own = {"Casemate-Request-Id", "Date"}
    assert len({(reply.body, tuple(one for one in reply.headers if one[0] not in own)) for reply in replies}) == 1
    assert {reply.header("WWW-Authenticate") for reply in replies} == {CHALLENGE}


async def test_e2_to_e4_and_e6_are_told_by_the_codes_of_their_rfcs(face):
    job = await face.client("acme", "job")
    for form, error in (
        ({**ISSUE, "scope": "admin"}, (400, "invalid_scope")),
        ({**ISSUE, "scope": 'a"b'}, (400, "invalid_scope")),
        ({**ISSUE, "scope": "models.infer  reflection"}, (400, "invalid_scope")),
        ({**ISSUE, "audience": "datasets"}, (400, "invalid_target")),
        ({**ISSUE, "audience": "nowhere"}, (400, "invalid_target")),
        ({**ISSUE, "grant_type": "password"}, (400, "unsupported_grant_type")),
        ({"audience": "inference"}, (400, "invalid_request")),
        ({**ISSUE, "client_id": "acme-other"}, (401, "invalid_client")),
    ):
        assert (await job.post("/oauth2/token", form)).error == error, form
    assert (await job.post("/oauth2/token", {**ISSUE, "scope": "models.infer", "client_id": "acme-job"})).status == 200
    # RFC 6749 section 3.2: what nobody knows is ignored, and what is empty is not there.
    assert (await job.post("/oauth2/token", {**ISSUE, "scope": "", "vendor": "x"})).status == 200


async def test_a_form_is_read_in_one_way_or_not_at_all(face):
    job = await face.client("acme", "job")
    good = "grant_type=client_credentials&audience=inference"
    for body, error in (
        (f"{good}&audience=datasets", "invalid_target"),
        (f"{good}&grant_type=client_credentials", "invalid_request"),
        (f"{good}&scope=models.infer&scope=", "invalid_request"),
        (f"{good}&x=%zz", "invalid_request"),
        (f"{good}&x=%ff", "invalid_request"),
        (f"{good}&alone", "invalid_request"),
        (good + "".join(f"&p{number}=1" for number in range(40)), "invalid_request"),
        ("", "invalid_request"),
    ):
        assert (await job.post("/oauth2/token", body)).error == (400, error), body
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain", f"{FORM}; charset=utf-16", ""):
        assert (await job.post("/oauth2/token", good, Content_Type=kind)).error == (400, "invalid_request"), kind
    for kind in (FORM, f"{FORM}; charset=UTF-8", FORM.upper()):
        assert (await job.post("/oauth2/token", good, Content_Type=kind)).status == 200, kind


async def test_methods_and_paths_are_those_that_there_are(face):
    job = await face.client("acme", "job")
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        reply = await job.ask(method, "/oauth2/token")
        assert (reply.status, reply.header("Allow")) == (405, "POST"), method
    for path in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
        shown, head = await job.get(path), await job.ask("HEAD", path)
        assert (shown.status, head.status, head.body) == (200, 200, b"")
        assert head.header("Content-Length") == str(len(shown.body))
        assert (await job.post(path)).header("Allow") == "GET, HEAD"
    for path in (
        "/",
        "/oauth2/token/",
        "/oauth2/%74oken",
        "//oauth2/token",
        "/.well-known/../oauth2/token",
        "/metrics",
    ):
        assert (await job.post(path, ISSUE)).status == 404, path
        assert (await job.get(path)).status == 404, path
    assert (await job.post("/oauth2/token", ISSUE)).status == 200


async def test_no_answer_names_its_server_or_lets_a_page_of_another_origin_read_it(face):
    job = await face.client("acme", "job")
    replies = [
        await job.ask("OPTIONS", "/oauth2/token", Origin="https://evil.example", Access_Control_Request_Method="POST"),
        await job.post("/oauth2/token", ISSUE, Origin="https://evil.example"),
        await job.get("/nothing"),
        await job.get("/.well-known/jwks.json"),
    ]
    await job.say("NOT HTTP\r\n\r\n")
    replies.append(await job.hear())
    for reply in replies:
        names = {name.lower() for name, _ in reply.headers}
        assert "server" not in names
        assert not any(name.startswith("access-control-") for name in names)
        assert b"aiohttp" not in reply.body.lower()
        assert b"python" not in reply.body.lower()
    assert [reply.status for reply in replies] == [405, 200, 404, 200, 400]


async def test_a_client_waits_to_be_told_to_go_on_and_a_refused_one_is_not(face):
    job = await face.client("acme", "job")
    body = b"grant_type=client_credentials&audience=inference"
    head = f"POST /oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nExpect: 100-continue\r\n"
    await job.say(f"{head}Content-Length: {len(body)}\r\n\r\n")
    assert (await job.hear()).status == 100
    await job.say(body)
    assert (await job.hear()).status == 200
    await job.say(f"{head}Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n")
    assert (await job.hear()).error == (413, "invalid_request")


async def test_revocation_tells_nobody_which_token_was_whose(face):
    job, other = await face.client("acme", "job"), await face.client("acme", "other")
    token = (await job.token()).json["access_token"]
    stranger = await face.client("acme", "stranger")
    replies = [
        await other.post("/oauth2/revoke", {"token": token}),
        await job.post("/oauth2/revoke", {"token": "junk"}),
        await job.post("/oauth2/revoke", {"token": "junk", "token_type_hint": "refresh_token"}),
        await job.post("/oauth2/revoke", {"token": (await other.token()).json["access_token"]}),
    ]
    assert {(reply.status, reply.body) for reply in replies} == {(200, b"")}
    assert (await job.post("/oauth2/introspect", {"token": token})).json["active"] is True
    assert (await stranger.post("/oauth2/revoke", {"token": token})).error == (401, "invalid_client")
    assert (await job.post("/oauth2/revoke")).error == (400, "invalid_request")
    hinted = await job.post("/oauth2/revoke", {"token": token, "token_type_hint": "saml"})
    assert hinted.status == 200  # RFC 7009 section 2.1: an unknown hint is ignored
    assert (await job.post("/oauth2/revoke", {"token": token, "token_type_hint": "access_token"})).status == 200
    await until_inactive(job, token)


async def until_inactive(line, token):
    async with asyncio.timeout(SOON):
        while (await line.post("/oauth2/introspect", {"token": token})).json["active"]:
            await asyncio.sleep(0.01)


async def test_e9_introspection_is_for_whom_a_token_concerns_and_says_no_more_to_others(face):
    job = await face.client("acme", "job")
    inference = await face.line(face.world.leaf("service", service="inference"))
    datasets = await face.line(face.world.leaf("service", service="datasets"))
    token = (await job.token()).json["access_token"]
    mine = await job.post("/oauth2/introspect", {"token": token})
    theirs = await inference.post("/oauth2/introspect", {"token": token})
    claims = jwt.decode(token, options={"verify_signature": False})
    assert mine.json == theirs.json == {**claims, "active": True, "token_type": "Bearer"}
    assert mine.header("Cache-Control") == "no-store"
    for line, text in ((datasets, token), (job, "junk"), (job, token[:-4] + "AAAA")):
        assert (await line.post("/oauth2/introspect", {"token": text})).json == {"active": False}
    stranger = await face.client("acme", "stranger")
    assert (await stranger.post("/oauth2/introspect", {"token": token})).error == (401, "invalid_client")


async def test_an_exchange_gives_a_refresh_token_where_it_is_asked_for_and_allowed(face, idp):
    gateway = await face.client("acme", "gateway")
    wish = {"grant_type": GRANT_EXCHANGE, "audience": "inference", "subject_token_type": JWT}
    first = await gateway.post("/oauth2/token", {**wish, "subject_token": idp.about("alice")})
    assert (first.status, first.json["issued_token_type"]) == (200, ACCESS)
    assert "refresh_token" not in first.json
    token = face.world.verified(first.json["access_token"], "inference")
    assert token.subject.endswith("alice")
    renewed = await gateway.post(
        "/oauth2/token", {**wish, "subject_token": idp.about("bob"), "requested_token_type": REFRESH}
    )
    refresh = {"grant_type": "refresh_token", "refresh_token": renewed.json["refresh_token"]}
    again = await gateway.post("/oauth2/token", refresh)
    assert again.status == 200
    assert again.json["refresh_token"] != renewed.json["refresh_token"]
    for form, error in (
        ({**wish, "subject_token": idp.about("alice", exp=1)}, "invalid_request"),  # RFC 8693 section 2.2.2
        ({**wish, "subject_token": Signatory(kid="k1").about("alice")}, "invalid_request"),
        ({**wish, "subject_token": idp.about(), "actor_token": "x", "actor_token_type": JWT}, "invalid_request"),
        ({**wish, "subject_token": idp.about(), "subject_token_type": REFRESH}, "invalid_request"),
        ({**wish, "subject_token": idp.about(), "requested_token_type": JWT}, "invalid_request"),
        (wish, "invalid_request"),
        ({**wish, "subject_token": idp.about(), "scope": "admin"}, "invalid_scope"),
        ({**wish, "subject_token": idp.about(), "audience": "datasets"}, "invalid_target"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "junk"}, "invalid_grant"),
        ({**refresh, "refresh_token": again.json["refresh_token"], "scope": "admin"}, "invalid_scope"),
    ):
        assert (await gateway.post("/oauth2/token", form)).error == (400, error), form
    assert (await gateway.post("/oauth2/revoke", {"token": again.json["refresh_token"]})).status == 200
    ended = await gateway.post("/oauth2/token", {**refresh, "refresh_token": again.json["refresh_token"]})
    assert ended.error == (400, "invalid_grant")


async def test_what_was_asked_for_over_https_is_audited_as_the_rpc_that_it_was(face, idp):
    gateway = await face.client("acme", "gateway")
    wish = {"grant_type": GRANT_EXCHANGE, "audience": "inference", "subject_token_type": JWT}
    form = {**wish, "subject_token": idp.about("carol"), "requested_token_type": REFRESH}
    got = await gateway.post("/oauth2/token", form)
    refresh = {"grant_type": "refresh_token", "refresh_token": got.json["refresh_token"]}
    replies = {
        "ExchangeToken": got,
        "RefreshToken": await gateway.post("/oauth2/token", refresh),
        "IssueToken": await gateway.token(),
        "RevokeToken": await gateway.post("/oauth2/revoke", {"token": "junk"}),
    }
    audited = {}
    async with asyncio.timeout(SOON):
        while len(audited) < len(replies):
            for line in face.world.settings.audit_file.read_text().splitlines():
                event = json.loads(line)
                audited[event.get("request_id")] = event
            wanted = {reply.header("Casemate-Request-Id") for reply in replies.values()}
            audited = {name: event for name, event in audited.items() if name in wanted}
            await asyncio.sleep(0.01)
    for method, reply in replies.items():
        event = audited[reply.header("Casemate-Request-Id")]
        assert (event["method"], event["decision"]) == (f"/casemate.auth.v1.TokenService/{method}", "allowed")
        assert event["spiffe_id"].endswith("/t/acme/gateway")
    text = face.world.settings.audit_file.read_text()
    assert got.json["access_token"] not in text
    assert got.json["refresh_token"] not in text


async def test_a_stolen_refresh_token_ends_its_family_over_https_too(face, idp):
    gateway, thief = await face.client("acme", "gateway"), await face.client("acme", "job")
    wish = {"grant_type": GRANT_EXCHANGE, "audience": "inference", "subject_token_type": JWT}
    form = {**wish, "subject_token": idp.about(), "requested_token_type": REFRESH}
    got = (await gateway.post("/oauth2/token", form)).json
    stolen = {"grant_type": "refresh_token", "refresh_token": got["refresh_token"]}
    assert (await thief.post("/oauth2/token", stolen)).error == (400, "invalid_grant")
    assert (await gateway.post("/oauth2/token", stolen)).error == (400, "invalid_grant")
    await until_inactive(gateway, got["access_token"])
