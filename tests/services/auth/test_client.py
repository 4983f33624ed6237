"""The client library against the real service: what operators and callers really use."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager

import pytest

from casemate.client.admin import Administration
from casemate.client.session import Endpoints, Session
from casemate.errors import AlreadyExists, InvalidRequest, Unauthenticated
from casemate.signing.keys import SigningKey
from casemate.signing.statements import sign_registration
from casemate.transport.certificates import CertificateSource
from tests.services.auth.world import spiffe_id
from tests.support.authority import TRUST_DOMAIN


@contextmanager
def _session(world, tenant, name):
    source = CertificateSource(world.leaf("client", tenant=tenant, name=name))
    address = f"127.0.0.1:{world.running.port}"
    endpoints = Endpoints(auth=address, inference=address, datasets=address)
    session = Session(source=source, endpoints=endpoints, trust_domain=TRUST_DOMAIN)
    try:
        yield session
    finally:
        session.close()
        source.close()


def _set_up(world, key):
    """A tenant with one caller, one grant and one signer; runs beside the loop that serves it."""
    with _session(world, "casemate", "operator") as session:
        administration = Administration(session)
        administration.create_tenant("acme")
        client = {
            "client_id": "acme-caller",
            "tenant": "acme",
            "spiffe_id": spiffe_id("acme", "caller"),
            "audiences": ["inference"],
            "scopes": ["models.infer"],
        }
        administration.create_client(**client)
        with pytest.raises(AlreadyExists):
            administration.create_client(**client)
        with pytest.raises(InvalidRequest):
            administration.create_client(**{**client, "spiffe_id": spiffe_id("globex", "caller")})
        grant = administration.create_grant(
            tenant="acme", caller="t/acme/caller", verb="infer", resource="model/digits"
        )
        proof = sign_registration("acme", "supplier", key, f"auth.{TRUST_DOMAIN}")
        signer = administration.register_signer(tenant="acme", role="supplier", public_key=key.public.der, proof=proof)
        assert [listed.id for listed in administration.list_grants("acme")] == [grant]
        return grant, signer


def _token(world, tenant, name):
    with _session(world, tenant, name) as session:
        return session.token("inference").text.reveal()


async def test_an_operator_sets_up_a_tenant_and_its_caller_gets_a_token(world):
    key = SigningKey.generate()
    grant, signer = await asyncio.to_thread(_set_up, world, key)
    assert signer == key.public.key_id
    token = world.verified(await asyncio.to_thread(_token, world, "acme", "caller"), "inference")
    assert (token.tenant, token.client_id) == ("acme", "acme-caller")
    with pytest.raises(Unauthenticated):
        await asyncio.to_thread(_token, world, "acme", "mallory")
    while {grant} != set(world.running.trust.current.grants.by_id) or signer not in world.running.trust.current.signers:
        await asyncio.sleep(0)
