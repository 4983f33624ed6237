"""Labels of released versions: an administrator's token and an operator's signature, and never back by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import release_service_pb2 as releases
from casemate.auth.v1 import trust_pb2
from casemate.auth.v1 import trust_service_pb2 as feed
from casemate.errors import Conflict, NotFound, Reason
from casemate.signing.keys import SigningKey
from casemate.signing.release_label import ReleaseLabel, sign_release_label
from casemate.signing.statements import sign_registration
from tests.services.auth.world import failure
from tests.support.authority import TRUST_DOMAIN

AUDIENCE = f"auth.{TRUST_DOMAIN}"
ROLES = {"publisher": trust_pb2.SIGNER_ROLE_PUBLISHER, "operator": trust_pb2.SIGNER_ROLE_OPERATOR}


async def register(world, role, *, tenant="acme"):
    key = SigningKey.generate()
    request = admin.RegisterSignerRequest(
        tenant=tenant, role=ROLES[role], public_key=key.public.der, proof=sign_registration(tenant, role, key, AUDIENCE)
    )
    await world.operator().administer("RegisterSigner", request)
    return key


@pytest.fixture
async def released(world):
    """Tenant acme with versions 1 and 2 of `digits`, and its operator's key."""
    await world.operator().administer("CreateTenant", admin.CreateTenantRequest(tenant="acme"))
    publisher = await register(world, "publisher")
    for number in (1, 2):
        version = trust_pb2.ReleasedVersion(
            number=number, manifest_sha256=bytes([number]) * 32, signer_key_id=publisher.public.key_id
        )
        await world.service("inference").record(
            releases.RecordReleaseRequest(tenant="acme", model="digits", version=version)
        )
    return await register(world, "operator")


def request(key, *, revision=1, **changes):
    fields = {
        "audience": AUDIENCE,
        "tenant": "acme",
        "model": "digits",
        "label": "stable",
        "number": 1,
        "manifest_sha256": bytes([changes.get("number", 1)]) * 32,
        "revision": revision,
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
        **changes,
    }
    return releases.SetLabelRequest(
        envelope=sign_release_label(ReleaseLabel(**fields), key), signer_key_id=key.public.key_id
    )


async def told(world):
    """The labels that the feed begins with."""
    beginning = await world.service("inference").watch(feed.WatchTrustRequest()).read()
    return [dict(release.labels) for release in beginning.snapshot.releases]


async def test_an_operators_label_leads_back_to_an_older_version_and_the_feed_tells_of_it(world, released):
    watch = world.service("inference").watch(feed.WatchTrustRequest())
    await watch.read()
    answer = await world.operator().set_label(request(released))
    assert dict(answer.release.labels) == {"stable": 1}
    labels = {}
    while labels != {"stable": 1}:
        for change in (await watch.read()).delta.changes:
            labels = dict(change.release.labels)
    assert await told(world) == [{"stable": 1}]


async def test_a_label_moves_and_is_taken_away_and_an_old_envelope_does_not_bring_it_back(world, released):
    operator = world.operator()
    first = request(released, revision=10)
    await operator.set_label(first)
    assert dict((await operator.set_label(first)).release.labels) == {"stable": 1}
    await operator.set_label(request(released, revision=20, number=2))
    error = await failure(operator.set_label(first))
    assert isinstance(error, Conflict)
    assert await told(world) == [{"stable": 2}]
    await operator.set_label(request(released, revision=30, number=0, manifest_sha256=b""))
    assert await told(world) == [{}]
    for replayed in (first, request(released, revision=30)):
        assert isinstance(await failure(operator.set_label(replayed)), Conflict)
    await operator.set_label(request(released, revision=31))


async def test_a_label_names_a_version_that_was_released_by_its_digest(world, released):
    operator = world.operator()
    for changes in ({"number": 3}, {"manifest_sha256": b"x" * 32}, {"model": "letters"}, {"tenant": "globex"}):
        key = released if "tenant" not in changes else await register(world, "operator", tenant="casemate")
        assert isinstance(await failure(operator.set_label(request(key, **changes))), NotFound)
    await operator.set_label(request(released))


async def test_a_publishers_key_an_unknown_one_and_a_revoked_one_move_no_label(world, released):
    operator = world.operator()
    revoked = await register(world, "operator")
    await operator.administer("RevokeSigner", admin.RevokeSignerRequest(key_id=revoked.public.key_id))
    for key in (await register(world, "publisher"), SigningKey.generate(), revoked):
        error = await failure(operator.set_label(request(key)))
        assert error.reason is Reason.SIGNER_UNTRUSTED
    stolen = request(released)
    stolen.envelope = request(SigningKey.generate()).envelope
    assert (await failure(operator.set_label(stolen))).reason is Reason.SIGNER_UNTRUSTED
    await operator.set_label(request(await register(world, "operator", tenant="casemate")))


async def test_an_operators_key_without_an_administrators_token_moves_no_label(world, released):
    wide = {"audiences": ("auth", "inference"), "scopes": ("admin", "models.publish")}
    neighbour = await world.enlist(world.operator(), "globex", "admin", **wide)
    assert isinstance(await failure(neighbour.set_label(request(released))), NotFound)
    own = await world.enlist(world.operator(), "acme", "admin", **wide)
    await own.set_label(request(released))


async def test_what_a_key_labelled_since_its_compromise_is_no_longer_told(world, released):
    operator = world.operator()
    await operator.set_label(request(released))
    watch = world.service("inference").watch(feed.WatchTrustRequest())
    assert dict((await watch.read()).snapshot.releases[0].labels) == {"stable": 1}
    await operator.administer("RevokeSigner", admin.RevokeSignerRequest(key_id=released.public.key_id))
    labels = None
    while labels != {}:
        for change in (await watch.read()).delta.changes:
            if change.HasField("release"):
                labels = dict(change.release.labels)
    assert await told(world) == [{}]


@pytest.mark.parametrize(
    "change", ["number = 2", "revision = 99", "recorded_at = now() - interval '1 year'", "label = 'canary'"]
)
async def test_a_label_changed_by_sql_is_not_told_and_sounds_the_alarm(world, released, change):
    await world.operator().set_label(request(released))
    before = world.alarms
    await world.sql(f"UPDATE release_label SET {change}")  # noqa: S608  # this test's own constants
    assert await told(world) == [{}]
    assert world.alarms > before
