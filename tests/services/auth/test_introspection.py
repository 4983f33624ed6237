"""What may be asked about a token, by whom; and what the service says of itself."""

from __future__ import annotations

import jwt
from jwt import PyJWK

from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import Reason, Unauthenticated
from tests.services.auth.world import failure

ALLOWED = {"audiences": ("inference",), "scopes": ("models.infer",)}


async def _look(caller, token):
    return await caller.ask("IntrospectToken", tokens.IntrospectTokenRequest(token=token))


async def test_e9_a_service_hears_of_tokens_that_are_for_it_alone(world):
    caller = await world.enlist(world.operator(), "acme", "caller", **ALLOWED)
    issued = await caller.token("inference")
    seen = await _look(world.service("inference"), issued.access_token)
    assert seen.active
    assert (seen.client_id, seen.tenant, seen.audience) == ("acme-caller", "acme", "inference")
    assert seen.token_id == issued.token_id
    assert seen.certificate_thumbprint
    assert seen.issuer == world.settings.issuer
    assert await _look(world.service("datasets"), issued.access_token) == tokens.IntrospectTokenResponse()


async def test_e9_a_client_hears_of_its_own_tokens_and_of_no_others(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", **ALLOWED)
    other = await world.enlist(operator, "acme", "other", **ALLOWED)
    issued = await caller.token("inference")
    assert (await _look(caller, issued.access_token)).active
    assert await _look(other, issued.access_token) == tokens.IntrospectTokenResponse()
    head, signature = issued.access_token.rsplit(".", 1)
    altered = f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    for garbage in ("", "garbage", issued.access_token + "=", altered, "rt1.x", "\x00"):
        assert await _look(caller, garbage) == tokens.IntrospectTokenResponse()


async def test_e9_who_is_no_client_hears_nothing(world):
    issued = await world.operator().token("auth")
    error = await failure(_look(world.client("acme", "nobody"), issued.access_token))
    assert (type(error), error.reason) == (Unauthenticated, Reason.CLIENT_UNKNOWN)


async def test_e10_revoking_what_is_unknown_or_anothers_is_accepted_without_effect(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", **ALLOWED)
    issued = await operator.token("auth")
    for token_id in (issued.token_id, "unknown", ""):
        await caller.revoke_own(token_id)
    assert (await _look(operator, issued.access_token)).active
    assert await world.sql("SELECT 1 FROM revocation") == []


async def test_the_key_set_verifies_what_was_issued_and_names_keys_by_their_thumbprints(world):
    caller = world.operator()
    issued = await caller.token("auth")
    answer = await caller.ask("GetJsonWebKeySet", tokens.GetJsonWebKeySetRequest())
    members = [
        {name.name: value for name, value in key.ListFields()}  # as its JSON would have them
        for key in answer.keys
    ]
    kid = jwt.get_unverified_header(issued.access_token)["kid"]
    key = next(PyJWK(member) for member in members if member["kid"] == kid)
    claims = jwt.decode(issued.access_token, key, algorithms=["EdDSA"], audience="auth", issuer=world.settings.issuer)
    assert claims["client_id"] == "operator"
    assert answer.max_age_seconds == 300


async def test_the_metadata_says_what_is_served(world):
    said = await world.operator().ask("GetServerMetadata", tokens.GetServerMetadataRequest())
    assert said.issuer == world.settings.issuer
    assert said.tls_client_certificate_bound_access_tokens
    assert "urn:ietf:params:oauth:grant-type:token-exchange" in said.grant_types_supported
    assert set(said.token_endpoint_auth_methods_supported) >= {"tls_client_auth", "private_key_jwt"}
