"""A gateway that may speak for the subjects of an external issuer, and what becomes of its tokens."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import PermissionDenied, Reason, Unauthenticated
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.services.auth.world import SOON, failure

OURS = tokens.SUBJECT_TOKEN_TYPE_ACCESS_TOKEN
THEIRS = tokens.SUBJECT_TOKEN_TYPE_JWT
INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer", "reflection")}


class House:
    def __init__(self, world):
        self.world = world
        self.operator = world.operator()
        self.idp = Signatory(kid="k1")

    async def build(self):
        self.gateway = await self.world.enlist(self.operator, "acme", "gateway", **INFERENCE)
        register = credentials.RegisterIssuerRequest(issuer=issuer_message(self.idp))
        await self.operator.administer("RegisterIssuer", register)
        self.grant = (await self.operator.administer("CreateExchangeGrant", exchange_grant())).id

    async def allow(self, **change):
        return (await self.operator.administer("CreateExchangeGrant", exchange_grant(**change))).id

    async def exchange(self, subject_token, *, by=None, kind=THEIRS, **change):
        wish = {"audience": "inference", "subject_token_type": kind, **change}
        request = tokens.ExchangeTokenRequest(subject_token=subject_token, **wish)
        return await (by or self.gateway).ask("ExchangeToken", request)

    async def look(self, token):
        request = tokens.IntrospectTokenRequest(token=token)
        return (await self.gateway.ask("IntrospectToken", request)).active

    def token(self, answer, audience="inference"):
        return self.world.verified(answer.access_token, audience)


def seconds_now():
    return int(datetime.now(UTC).timestamp())


async def refused(call, kind=Unauthenticated, reason=Reason.GRANT_INVALID):
    error = await failure(call)
    assert (type(error), error.reason) == (kind, reason)


async def seen(world, kind, value):
    """Waits until the service heard of a revocation."""
    async with asyncio.timeout(SOON):
        while not any((one.kind, one.value) == (kind, value) for one in revocations(world)):
            await asyncio.sleep(0.01)


def revocations(world):
    return world.running.trust.current.revocations.by_id.values()


async def denied(call):
    await refused(call, PermissionDenied, Reason.SCOPE_NOT_GRANTED)


async def chain(house):
    """A front end whose tokens the gateway may exchange."""
    front = {"audiences": ("inference", "acme-gateway"), "scopes": ("models.infer",)}
    frontend = await house.world.enlist(house.operator, "acme", "frontend", **front)
    await house.allow(source="casemate", refresh=False, scopes=["models.infer", "reflection"])
    return frontend


async def until_inactive(house, token):
    request = tokens.IntrospectTokenRequest(token=token)
    async with asyncio.timeout(1):
        while (await house.gateway.ask("IntrospectToken", request)).active:
            await asyncio.sleep(0)
