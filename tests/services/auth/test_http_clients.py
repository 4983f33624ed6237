"""OAuth over HTTPS with the clients that others wrote: Authlib, requests-oauthlib, PyJWT, curl's one request."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import jwt
import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey, OKPKey
from oauthlib.oauth2 import BackendApplicationClient
from oauthlib.oauth2 import OAuth2Error as RefusedByServer
from requests_oauthlib import OAuth2Session as RequestsSession

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.errors import Reason, Unauthenticated
from services.auth.http_forms import ASSERTION_TYPE
from tests.services.auth.http_world import client_context, facing, greet, protected, resolving
from tests.services.auth.identities import ISSUER, Signatory
from tests.services.auth.world import failure

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}


@pytest.fixture
async def face(world):
    with resolving():
        async with facing(world) as built:
            yield built


async def enlist(world, name, authentication=0):
    operator = world.operator()
    await world.enlist(operator, "acme", name, authentication=authentication, **INFERENCE)
    return operator, world.leaf("client", tenant="acme", name=name)


def shown(session, directory: Path):
    """The session with its certificate, as requests takes it."""
    session.cert = (str(directory / "cert.pem"), str(directory / "key.pem"))
    session.verify = str(directory / "ca.pem")
    session.trust_env = False
    return session


async def metadata_of(face, directory):
    session = shown(RequestsSession(), directory)
    answer = await asyncio.to_thread(
        session.get, f"{face.url}/.well-known/oauth-authorization-server", withhold_token=True
    )
    session.close()
    return answer.json()


def authlib_by_certificate(directory, metadata):
    # RFC 8705 section 2: the client names itself in the body, and its certificate is the proof.
    with shown(AuthlibSession("acme-job", token_endpoint_auth_method="none"), directory) as session:
        return session.fetch_token(metadata["token_endpoint"], audience="inference", scope="models.infer")


def requests_by_certificate(directory, metadata):
    with shown(RequestsSession(client=BackendApplicationClient("acme-job")), directory) as session:
        return session.fetch_token(
            metadata["token_endpoint"],
            include_client_id=True,
            audience="inference",
            cert=session.cert,
            verify=session.verify,
        )


def authlib_by_assertion(directory, metadata, signatory):
    pem = signatory.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = (ECKey if signatory.algorithm == "ES256" else OKPKey).import_key(pem)
    session = AuthlibSession("acme-job", key, token_endpoint_auth_method="private_key_jwt")
    # Its own assertions live for an hour, which is longer than ours may.
    soon = {"exp": int(time.time()) + 60}
    session.register_client_auth_method(PrivateKeyJWT(metadata["issuer"], claims=soon, alg=signatory.algorithm))
    with shown(session, directory):
        return session.fetch_token(metadata["token_endpoint"], audience="inference")


def requests_by_assertion(directory, metadata, signatory):
    with shown(RequestsSession(client=BackendApplicationClient("acme-job")), directory) as session:
        return session.fetch_token(
            metadata["token_endpoint"],
            include_client_id=True,
            audience="inference",
            client_assertion_type=ASSERTION_TYPE,
            client_assertion=signatory.assertion("acme-job"),
            cert=session.cert,
            verify=session.verify,
        )


def verified_by_pyjwt(directory, metadata, token):
    keys = jwt.PyJWKClient(metadata["jwks_uri"], ssl_context=client_context(directory))
    key = keys.get_signing_key_from_jwt(token)
    return jwt.decode(token, key, algorithms=[key.algorithm_name], audience="inference", issuer=ISSUER)


@pytest.mark.parametrize("fetch", [authlib_by_certificate, requests_by_certificate])
async def test_a_token_got_by_certificate_verifies_and_opens_a_service_to_that_certificate_alone(world, face, fetch):
    _, job = await enlist(world, "job")
    metadata = await metadata_of(face, job)
    got = await asyncio.to_thread(fetch, job, metadata)
    claims = await asyncio.to_thread(verified_by_pyjwt, job, metadata, got["access_token"])
    assert (claims["client_id"], got["token_type"]) == ("acme-job", "Bearer")
    assert 0 < got["expires_in"] <= 300
    async with protected(world) as port:
        assert await greet(job, port, got["access_token"]) == "Hello, you"
        thief = world.leaf("client", tenant="acme", name="job")
        error = await failure(greet(thief, port, got["access_token"]))
    assert (type(error), error.reason) == (Unauthenticated, Reason.CERTIFICATE_MISMATCH)


@pytest.mark.parametrize(
    ("fetch", "algorithm"),
    # The library beneath Authlib warns of the name EdDSA.
    [(authlib_by_assertion, "ES256"), (requests_by_assertion, "ES256"), (requests_by_assertion, "EdDSA")],
)
async def test_a_token_got_by_an_assertion_verifies_and_a_strangers_assertion_gets_none(world, face, fetch, algorithm):
    operator, job = await enlist(world, "job", admin.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT)
    signatory = Signatory(algorithm=algorithm)
    register = credentials.AddClientKeyRequest(client_id="acme-job", public_key=signatory.der)
    await operator.administer("AddClientKey", register)
    metadata = await metadata_of(face, job)
    got = await asyncio.to_thread(fetch, job, metadata, signatory)
    claims = await asyncio.to_thread(verified_by_pyjwt, job, metadata, got["access_token"])
    assert claims["client_id"] == "acme-job"
    with pytest.raises((RefusedByServer, Exception), match="invalid_client"):
        await asyncio.to_thread(fetch, job, metadata, Signatory(algorithm=algorithm))
    # A certificate of another name does not prove the client either, whatever it signs with.
    _, other = await enlist(world, "other")
    with pytest.raises((RefusedByServer, Exception), match="invalid_client"):
        await asyncio.to_thread(fetch, other, metadata, signatory)


async def test_the_metadata_is_what_rfc_8414_asks_for_and_only_what_is_served(world, face):
    job = world.leaf("client", tenant="acme", name="job")
    metadata = await metadata_of(face, job)
    # Authlib takes the empty list for a missing one; there is no response type, since there is no such endpoint.
    AuthorizationServerMetadata({**metadata, "response_types_supported": ["none"]}).validate()
    assert metadata["issuer"] == ISSUER
    assert metadata["tls_client_certificate_bound_access_tokens"] is True
    assert (
        metadata["mtls_endpoint_aliases"]["token_endpoint"] == metadata["token_endpoint"] == f"{face.url}/oauth2/token"
    )
    assert metadata["response_types_supported"] == []
    assert "authorization_endpoint" not in metadata
    line = await face.line(job)
    for name in ("token", "revocation", "introspection"):
        path = metadata[f"{name}_endpoint"].removeprefix(face.url)
        assert (await line.post(path)).status in {400, 401}, "an endpoint that is said is there"
    for grant in metadata["grant_types_supported"]:
        reply = await line.post("/oauth2/token", {"grant_type": grant, "audience": "inference"})
        assert reply.json["error"] != "unsupported_grant_type"
    for grant in ("authorization_code", "password", "implicit"):
        assert (await line.post("/oauth2/token", {"grant_type": grant})).error == (400, "unsupported_grant_type")


async def test_the_key_set_needs_a_certificate_and_is_json_that_may_be_kept_for_five_minutes(world, face):
    line = await face.client("acme", "job")
    reply = await line.get("/.well-known/jwks.json")
    assert reply.header("Content-Type") == "application/jwk-set+json"
    assert reply.header("Cache-Control") == "private, max-age=300"
    assert [key["kid"] for key in reply.json["keys"]] == sorted(world.running.trust.current.keys)
    assert all("d" not in key for key in reply.json["keys"])
    assert json.loads(reply.body) == reply.json
