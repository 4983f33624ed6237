"""Releases: one number after the other, by the inference service alone, of trusted publishers alone."""

from __future__ import annotations

import asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import release_service_pb2 as releases
from casemate.auth.v1 import trust_pb2
from casemate.auth.v1 import trust_service_pb2 as feed
from casemate.errors import Conflict, InvalidRequest, PermissionDenied, Reason
from casemate.signing.keys import SigningKey
from casemate.signing.statements import sign_registration
from tests.services.auth.world import failure
from tests.support.authority import TRUST_DOMAIN


async def _publisher(world, *, tenant="acme", role="publisher"):
    operator = world.operator()
    key = SigningKey.generate()
    roles = {"publisher": trust_pb2.SIGNER_ROLE_PUBLISHER, "supplier": trust_pb2.SIGNER_ROLE_SUPPLIER}
    request = admin.RegisterSignerRequest(
        tenant=tenant,
        role=roles[role],
        public_key=key.public.der,
        proof=sign_registration(tenant, role, key, f"auth.{TRUST_DOMAIN}"),
    )
    await operator.administer("RegisterSigner", request)
    return key.public.key_id


async def _tenant(world, name="acme"):
    await world.operator().administer("CreateTenant", admin.CreateTenantRequest(tenant=name))


def _version(signer, number=1, content=1, **change):
    version = trust_pb2.ReleasedVersion(number=number, manifest_sha256=bytes([content]) * 32, signer_key_id=signer)
    return releases.RecordReleaseRequest(**{"tenant": "acme", "model": "digits", "version": version, **change})


async def test_versions_follow_one_another_and_the_feed_tells_of_them(world):
    await _tenant(world)
    signer = await _publisher(world)
    inference = world.service("inference")
    watch = inference.watch(feed.WatchTrustRequest())
    await watch.read()
    await inference.record(_version(signer, 1, 1))
    answer = await inference.record(_version(signer, 2, 2))
    assert [version.number for version in answer.release.versions] == [1, 2]
    told: list[int] = []
    while told != [1, 2]:
        message = await watch.read()
        for change in message.delta.changes:
            told = [version.number for version in change.release.versions]


async def test_the_same_version_again_changes_nothing(world):
    await _tenant(world)
    signer = await _publisher(world)
    inference = world.service("inference")
    first = await inference.record(_version(signer))
    again = await inference.record(_version(signer))
    assert again == first
    assert len(await world.sql("SELECT 1 FROM release_version")) == 1


async def test_a_number_that_is_taken_or_not_the_next_is_a_conflict(world):
    await _tenant(world)
    signer = await _publisher(world)
    inference = world.service("inference")
    await inference.record(_version(signer, 1, 1))
    for number, content in ((1, 2), (3, 3)):
        error = await failure(inference.record(_version(signer, number, content)))
        assert isinstance(error, Conflict)
        assert error.reason is Reason.CONCURRENT_UPDATE
    await inference.record(_version(signer, 2, 2))


async def test_of_many_who_record_one_number_exactly_one_succeeds(world):
    await _tenant(world)
    signer = await _publisher(world)
    inference = world.service("inference")
    requests = [inference.record(_version(signer, 1, content)) for content in range(1, 9)]
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
    assert len(await world.sql("SELECT 1 FROM release_version")) == 1


async def test_only_inference_records_releases(world):
    await _tenant(world)
    signer = await _publisher(world)
    for caller in (world.operator(), world.service("datasets")):
        error = await failure(caller.record(_version(signer)))
        assert isinstance(error, PermissionDenied)
    await world.service("inference").record(_version(signer))


async def test_a_version_of_somebody_who_does_not_publish_for_the_tenant_is_refused(world):
    await _tenant(world)
    await _tenant(world, "globex")
    inference = world.service("inference")
    untrusted = ["f" * 64, await _publisher(world, role="supplier"), await _publisher(world, tenant="globex")]
    revoked = await _publisher(world)
    await world.operator().administer("RevokeSigner", admin.RevokeSignerRequest(key_id=revoked))
    for signer in (*untrusted, revoked):
        error = await failure(inference.record(_version(signer)))
        assert error.reason is Reason.SIGNER_UNTRUSTED
    await inference.record(_version(await _publisher(world)))


async def test_every_field_that_is_wrong_is_named(world):
    await _tenant(world)
    signer = await _publisher(world)
    broken = _version("", number=0, tenant="", model="../digits")
    broken.version.manifest_sha256 = b"short"
    error = await failure(world.service("inference").record(broken))
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {
        "tenant",
        "model",
        "version.number",
        "version.manifest_sha256",
        "version.signer_key_id",
    }
    await world.service("inference").record(_version(signer))


async def test_a_release_changed_by_sql_is_not_told(world):
    await _tenant(world)
    signer = await _publisher(world)
    inference = world.service("inference")
    await inference.record(_version(signer, 1, 1))
    await world.sql("UPDATE release_version SET manifest_sha256 = sha256('swapped')")
    before = world.alarms
    beginning = await inference.watch(feed.WatchTrustRequest()).read()
    assert [len(release.versions) for release in beginning.snapshot.releases] == [0]
    assert world.alarms > before
