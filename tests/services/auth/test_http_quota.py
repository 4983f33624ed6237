"""HTTP 429 on each endpoint: who asks too much is told when to come back, and is written down; others go on."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
import pytest_asyncio

from casemate.clock import SystemClock
from casemate.gate.core.quota import Shares
from services.auth.slowing import FREE_FAILURES
from services.auth.tokens import REVOKING
from tests.services.auth.http_world import shared_face
from tests.services.auth.world import SOON

pytestmark = pytest.mark.asyncio(loop_scope="module")

BURST = REVOKING.burst + 50
INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}
ISSUE = {"grant_type": "client_credentials", "audience": "inference"}
ENDPOINTS = {
    "/oauth2/token": (ISSUE, "IssueToken"),
    "/oauth2/introspect": ({"token": "x.y.z"}, "IntrospectToken"),
    "/oauth2/revoke": ({"token": "x.y.z"}, "RevokeToken"),
}
EACH = pytest.mark.parametrize("path", list(ENDPOINTS))


class StoppedWatch(SystemClock):
    """The time of day goes on; what is measured in seconds since then does not, so nothing refills."""

    def monotonic(self) -> float:
        return 1000.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def face(embedded_postgres, leaf, tmp_path_factory):
    shares = Shares(places=128, burst=BURST)
    state = tmp_path_factory.mktemp("face")
    async with shared_face(embedded_postgres, leaf, state, clock=StoppedWatch(), shares=shares) as shared:
        yield shared


async def _enlisted(face, name):
    await face.world.enlist(face.operator, "acme", name, **INFERENCE)
    return await face.client("acme", name)


async def _until_refused(ask, *, after):
    """What is answered once `after` good answers were given."""
    for n in range(after):
        reply = await ask()
        assert reply.status == 200, (n, reply.body)
    return await ask()


async def _is_told_to_wait(face, reply, rpc):
    """The answer of RFC 6585 in the words of OAuth, and the event in the audit."""
    assert reply.error == (429, "temporarily_unavailable")
    assert reply.json.keys() == {"error", "error_description"}
    assert int(reply.header("Retry-After")) >= 1
    assert (reply.header("Cache-Control"), reply.header("Content-Type")) == ("no-store", "application/json")
    event = await _audited(face, reply.header("Casemate-Request-Id"))
    assert event["method"] == f"/casemate.auth.v1.TokenService/{rpc}"
    # The gate's own share; or, once admitted, what became of the call.
    assert (event["decision"], event["reason"] in {"RATE_LIMITED", "RESOURCE_EXHAUSTED"}) == ("denied", True)
    assert event["spiffe_id"].startswith("spiffe://")


async def _audited(face, request_id):
    async with asyncio.timeout(SOON):
        while True:
            for line in face.world.settings.audit_file.read_text().splitlines():
                event = json.loads(line)
                if request_id in (event.get("request_id"), *event.get("request_ids", ())):
                    return event
            await asyncio.sleep(0.01)


@EACH
async def test_who_fails_too_often_is_told_to_wait_on_every_endpoint_and_nobody_else(face, path):
    form, rpc = ENDPOINTS[path]
    name = path.rpartition("/")[2]
    guesser, other = await _enlisted(face, f"{name}-guesser"), await _enlisted(face, f"{name}-other")
    guess = {**form, "client_id": f"acme-{name}-other", "client_secret": "guess"}
    failed = [await guesser.post(path, guess) for _ in range(FREE_FAILURES)]
    assert {reply.error for reply in failed} == {(401, "invalid_client")}
    event = await _audited(face, failed[-1].header("Casemate-Request-Id"))
    assert (event["decision"], event["reason"]) == ("denied", "UNAUTHENTICATED")
    await _is_told_to_wait(face, await guesser.post(path, guess), rpc)
    # Also with what is good: the identity has to wait, not the attempt. And the one guessed at does not.
    assert (await guesser.post(path, form)).error == (429, "temporarily_unavailable")
    assert (await other.post(path, form)).status == 200


async def test_who_revokes_too_fast_is_told_to_wait_and_may_do_all_else(face):
    form, rpc = ENDPOINTS["/oauth2/revoke"]
    hasty, other = await _enlisted(face, "hasty"), await _enlisted(face, "patient")
    reply = await _until_refused(partial(hasty.post, "/oauth2/revoke", form), after=REVOKING.burst)
    await _is_told_to_wait(face, reply, rpc)
    assert (await hasty.post("/oauth2/token", ISSUE)).status == 200
    assert (await other.post("/oauth2/revoke", form)).status == 200


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect"])
async def test_who_asks_more_than_its_share_is_told_to_wait_and_nobody_else(face, path):
    form, rpc = ENDPOINTS[path]
    name = path.rpartition("/")[2]
    greedy, other = await _enlisted(face, f"{name}-greedy"), await _enlisted(face, f"{name}-modest")
    reply = await _until_refused(partial(greedy.post, path, form), after=BURST)
    await _is_told_to_wait(face, reply, rpc)
    assert (await other.post(path, form)).status == 200
