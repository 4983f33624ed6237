"""Tokens signed in AWS KMS: issued, verified elsewhere, rotated, and what happens when KMS does not sign."""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import trust_pb2
from casemate.errors import CasemateError, FailedPrecondition, StoredDataUnreadable, Unauthenticated, Unavailable
from casemate.gate.core.records import ES256, VerificationKey
from casemate.gate.core.verifier import TokenVerifier, verify_jws
from casemate.settings import load_settings
from services.auth import app
from services.auth.key_ring import TokenKeyRing
from services.auth.key_schedule import SEALED, KeySchedule, Turn, kept_by
from services.auth.kms_token_keys import KmsTokenKeys, token_key_places
from services.auth.settings import AuthSettings
from services.auth.store.token_keys import TokenKeyStore
from services.auth.token_wraps import TokenKeyWraps
from tests.services.auth.http_world import facing, greet, protected
from tests.services.auth.lines import HandClock
from tests.services.auth.world import SOON, World, failure
from tests.support.keks import AwsProvider, session

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}
DAY = timedelta(days=1)


async def signing_key(aws, spec="ECC_NIST_P256", usage="SIGN_VERIFY"):
    """A new KMS key, named as the setting names it."""
    made = await aws.admin.create_key(KeySpec=spec, KeyUsage=usage)
    return f"aws-kms:{made['KeyMetadata']['Arn']}?endpoint={aws.double.url}"


@asynccontextmanager
async def kms_of(clock=None):
    async with AsyncExitStack() as stack:
        yield KmsTokenKeys(stack=stack, clock=clock or HandClock(), session=session(), limits=AwsProvider.LIMITS)


def ring_of(shelf, kms, clock, *places):
    keys = TokenKeyStore(pool=shelf.pool, tables=shelf.tables)
    schedule = KeySchedule(places=places)
    return TokenKeyRing(store=shelf.store, keys=keys, kek=shelf.kek, clock=clock, schedule=schedule, kms=kms)


async def stored(shelf):
    return {kept_by(key): key for key in await TokenKeyStore(pool=shelf.pool, tables=shelf.tables).all()}


@asynccontextmanager
async def serving(world_like, settings):
    async with app.serving(
        settings, pace=app.Pace(heartbeat=timedelta(milliseconds=200), lame_duck=timedelta(0))
    ) as running:
        world = World(settings, running, world_like.leaf)
        try:
            yield world
        finally:
            for channel in world.channels:
                await channel.close()


@pytest.fixture
def credentials(monkeypatch):
    """As AWS's own tools look for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


async def test_a_token_signed_in_kms_opens_a_service_and_pyjwt_verifies_it(world, aws, credentials):
    await world.enlist(world.operator(), "acme", "job", **INFERENCE)
    place = await signing_key(aws)
    settings = replace(world.settings, token_keys=(place,), audit_file=world.settings.audit_file.with_suffix(".2"))
    job = world.leaf("client", tenant="acme", name="job")
    async with serving(world, settings) as second, protected(second) as port, facing(second) as face:
        await until_published(second, ES256)
        await activate_now(world, second)
        line = await face.line(job)
        token = (await line.token()).json["access_token"]
        assert jwt.get_unverified_header(token)["alg"] == ES256
        keys = {key["kid"]: key for key in (await line.get("/.well-known/jwks.json")).json["keys"]}
        published = keys[jwt.get_unverified_header(token)["kid"]]
        assert (published["kty"], published["crv"], published["alg"]) == ("EC", "P-256", ES256)
        jwt.decode(token, jwt.PyJWK(published), algorithms=[ES256], audience="inference")
        assert await greet(job, port, token) == "Hello, you"
        error = await failure(greet(world.leaf("client", tenant="acme", name="job"), port, token))
        assert isinstance(error, Unauthenticated)
        # KMS ends to sign: tokens are refused as what passes, and what lives goes on.
        aws.double.refusal = ("DisabledException", 400)
        assert (await line.token()).error == (503, "temporarily_unavailable")
        assert isinstance(await failure(second.caller(job).token("inference")), Unavailable)
        assert await greet(job, port, token) == "Hello, you"
        aws.double.refusal = None
        assert (await line.token()).status == 200


async def until_published(world, algorithm):
    async with asyncio.timeout(SOON):
        while algorithm not in {key.algorithm for key in world.running.trust.current.keys.values()}:
            await asyncio.sleep(0.02)


async def activate_now(world, second):
    """An operator revokes the key that signs, so that the published one takes over at once."""
    (old,) = [kid for kid, key in second.running.trust.current.keys.items() if key.algorithm != ES256]
    revoke = admin.RevokeRequest(kind=trust_pb2.REVOCATION_KIND_KEY, value=old)
    await world.operator().administer("Revoke", revoke)
    async with asyncio.timeout(SOON):
        while old in second.running.trust.current.keys:
            await asyncio.sleep(0.02)


async def test_keys_go_from_sealed_to_kms_to_the_next_and_back(shelf, aws):
    clock = HandClock()
    one, two = await signing_key(aws), await signing_key(aws)
    async with kms_of(clock) as kms:
        ring = ring_of(shelf, kms, clock)
        await ring.prepare()
        assert ring.active().algorithm == "EdDSA"
        # Named by the operator, at a restart: made and told of at once, and signs an hour later.
        ring = ring_of(shelf, kms, clock, one, two)
        await ring.prepare()
        assert [step.turn for step in await ring.turn()] == [Turn.PREPARE, Turn.PUBLISH]
        clock.pass_by(timedelta(minutes=59))
        assert await ring.turn() == []
        clock.pass_by(timedelta(minutes=1))
        assert [step.turn for step in await ring.turn()] == [Turn.ACTIVATE]
        first = ring.active()
        assert first.algorithm == ES256
        # By its schedule to the next, and when both had their turn, to the first again.
        for expected in (two, one):
            clock.pass_by(15 * DAY)
            assert Turn.PREPARE in {step.turn for step in await ring.turn()}
            clock.pass_by(10 * DAY)
            assert Turn.ACTIVATE in {step.turn for step in await ring.turn()}
            assert (await stored(shelf))[expected].state == "active"
        # And back: nothing else is needed than the setting.
        ring = ring_of(shelf, kms, clock)
        await ring.prepare()
        assert ring.active().algorithm == ES256
        await ring.turn()
        clock.pass_by(timedelta(hours=1))
        await ring.turn()
        assert ring.active().algorithm == "EdDSA"
        clock.pass_by(timedelta(minutes=15))
        await ring.turn()
        assert set(await stored(shelf)) == {SEALED}


async def test_one_kms_key_goes_on_signing_and_says_that_it_is_to_be_followed(shelf, aws, caplog):
    clock, place = HandClock(), await signing_key(aws)
    async with kms_of(clock) as kms:
        ring = ring_of(shelf, kms, clock, place)
        await ring.prepare()
        kid = ring.active().kid
        clock.pass_by(100 * DAY)
        with caplog.at_level(logging.ERROR):
            assert await ring.turn() == await ring.turn() == []
        assert [record.message for record in caplog.records if "had its turn" in record.message] == [
            f"token key {kid} is to be followed, and every KMS key that was named had its turn"
        ]
        assert ring.active().kid == kid


async def test_a_revoked_kms_key_is_followed_at_once_and_never_signs_again(shelf, aws):
    clock, place = HandClock(), await signing_key(aws)
    async with kms_of(clock) as kms:
        ring = ring_of(shelf, kms, clock, place)
        await ring.prepare()
        successor = await ring.new_key()
        assert kept_by(successor) == SEALED, "no other KMS key was named, and somebody has to sign"
        other = await signing_key(aws)
        assert kept_by(await ring_of(shelf, kms, clock, place, other).new_key()) == other
        aws.double.refusal = ("KMSInternalException", 500)
        assert kept_by(await ring_of(shelf, kms, clock, place, other).new_key()) == SEALED


FAULTS = {
    "throttled": ("ThrottlingException", 400),
    "denied": ("AccessDeniedException", 400),
    "disabled": ("DisabledException", 400),
    "gone": ("NotFoundException", 400),
    "failing": ("KMSInternalException", 500),
    "expired": ("ExpiredTokenException", 400),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_kms_that_does_not_sign_is_unavailable_and_then_signs_again(aws, fault):
    async with kms_of() as kms:
        key = await kms.open(await kms.generate(await signing_key(aws), now=HandClock().now()))
        aws.double.refusal = FAULTS[fault]
        with pytest.raises(Unavailable) as raised:
            await key.sign(b"token")
        assert FAULTS[fault][0] in str(raised.value) or fault == "gone"
        aws.double.refusal = None
        assert len(await key.sign(b"token")) == 64


async def test_a_key_that_its_owner_disabled_in_kms_does_not_sign_until_it_is_enabled(aws):
    place = await signing_key(aws)
    name = place.partition("?")[0].rpartition("/")[2]
    async with kms_of() as kms:
        key = await kms.open(await kms.generate(place, now=HandClock().now()))
        await aws.admin.disable_key(KeyId=name)
        with pytest.raises(Unavailable, match="DisabledException"):
            await key.sign(b"token")
        await aws.admin.enable_key(KeyId=name)
        await key.sign(b"token")


async def test_after_failures_in_a_row_kms_is_left_alone_and_asked_again_later(aws):
    clock = HandClock()
    async with kms_of(clock) as kms:
        key = await kms.open(await kms.generate(await signing_key(aws), now=clock.now()))
        aws.double.refusal = ("KMSInternalException", 500)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await key.sign(b"token")
        aws.double.calls.clear()
        with pytest.raises(Unavailable) as refused:
            await key.sign(b"token")
        assert refused.value.retry_after is not None
        assert aws.double.calls == []
        aws.double.refusal = None
        clock.pass_by(timedelta(seconds=5))
        await key.sign(b"token")


async def test_a_signature_by_another_key_or_of_another_form_never_leaves(aws):
    clock = HandClock()
    async with kms_of(clock) as kms:
        key = await kms.open(await kms.generate(await signing_key(aws), now=clock.now()))
        good = await key.sign(b"token")
        r, s = int.from_bytes(good[:32]), int.from_bytes(good[32:])
        for wrong in (
            good,  # raw where DER is due
            encode_dss_signature(s, r),
            encode_dss_signature(r, s) + b"\0",
            b"",
            (await _another(kms, aws)),
        ):
            aws.double.alters["Sign"] = {"Signature": base64.b64encode(wrong).decode()}
            clock.pass_by(timedelta(seconds=5))  # or it would be left alone for a while
            with pytest.raises(Unavailable, match="does not verify"):
                await key.sign(b"token")
        del aws.double.alters["Sign"]
        clock.pass_by(timedelta(seconds=5))
        assert len(await key.sign(b"token")) == 64


async def _another(kms, aws):
    key = await kms.open(await kms.generate(await signing_key(aws), now=HandClock().now()))
    raw = await key.sign(b"token")
    return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))


@pytest.mark.parametrize(
    ("spec", "usage"),
    [
        ("RSA_3072", "SIGN_VERIFY"),
        ("ECC_NIST_P384", "SIGN_VERIFY"),
        ("ECC_SECG_P256K1", "SIGN_VERIFY"),
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"),
    ],
)
async def test_only_a_signing_key_on_p_256_becomes_a_token_key(shelf, aws, spec, usage):
    place = await signing_key(aws, spec, usage)
    async with kms_of() as kms:
        ring = ring_of(shelf, kms, HandClock(), place)
        with pytest.raises(CasemateError) as refused:
            await ring.prepare()
        assert isinstance(refused.value, FailedPrecondition)
        assert await stored(shelf) == {}
        await ring_of(shelf, kms, HandClock(), await signing_key(aws)).prepare()


async def test_a_key_that_cannot_sign_is_not_told_of(shelf, aws):
    clock, place = HandClock(), await signing_key(aws)
    async with kms_of(clock) as kms:
        await ring_of(shelf, kms, clock).prepare()
        ring = ring_of(shelf, kms, clock, place)
        await ring.prepare()
        aws.double.alters["Sign"] = {"Signature": base64.b64encode(b"junk").decode()}
        with pytest.raises(Unavailable):
            await ring.turn()
        assert (await stored(shelf))[place].state == "prepared"
        assert ring.active().algorithm == "EdDSA"
        del aws.double.alters["Sign"]
        await ring.turn()
        assert (await stored(shelf))[place].state == "published"


async def test_a_row_that_names_a_kms_key_is_no_wrap_and_one_that_sql_pointed_elsewhere_is_refused(shelf, aws):
    clock, place = HandClock(), await signing_key(aws)
    async with kms_of(clock) as kms:
        ring = ring_of(shelf, kms, clock, place)
        await ring.prepare()
        assert await TokenKeyWraps(pool=shelf.pool, tables=shelf.tables).count() == 0
        elsewhere = await signing_key(aws)
        await shelf.pool.execute("UPDATE token_key SET sealed_private_key = $1", elsewhere.encode())
        with pytest.raises(StoredDataUnreadable):
            await ring_of(shelf, kms, clock, place).prepare()
        assert shelf.alarms


def test_es256_counts_only_where_the_key_is_one_and_a_twin_is_the_same_token():
    """The key says the algorithm; the other spelling of a signature changes no claim, so revoking `jti` ends both."""
    private = generate_private_key(SECP256R1())
    key = VerificationKey.load(private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    text = jwt.encode({"jti": "one"}, private, algorithm=ES256, headers={"kid": key.kid, "typ": "at+jwt"})
    signed, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    twin = f"{signed}.{_base64url(r.to_bytes(32) + (order - s).to_bytes(32))}"
    assert verify_jws(twin, key=key.public_key, algorithm=ES256) == verify_jws(
        text, key=key.public_key, algorithm=ES256
    )
    der = f"{signed}.{_base64url(encode_dss_signature(r, s))}"
    assert decode_dss_signature(encode_dss_signature(r, s)) == (r, s)
    verifier = TokenVerifier(issuer="https://auth.casemate.internal", audience="inference")
    with pytest.raises(Unauthenticated, match="not a compact JWS"):
        verifier.verify(der, keys={key.kid: key}, now=HandClock().now())
    edwards = VerificationKey(kid=key.kid, algorithm="EdDSA", public_key_der=b"", public_key=key.public_key)
    with pytest.raises(Unauthenticated, match="algorithm is not the key's"):
        verifier.verify(text, keys={key.kid: edwards}, now=HandClock().now())


def _base64url(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


ARN = "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_the_setting_names_kms_keys_or_none():
    assert token_key_places("sealed") == ()
    assert token_key_places(ARN) == (ARN,)
    assert token_key_places(f"{ARN},{ARN[:-1]}c") == (ARN, f"{ARN[:-1]}c")
    for wrong in (
        "",
        "SEALED",
        f"{ARN},{ARN}",
        f"{ARN},",
        f"sealed,{ARN}",
        "file:/kek",
        "aws-kms:alias/token",
        f"{ARN}?x=y",
    ):
        with pytest.raises(ValueError, match=r"must|twice|takes"):
            token_key_places(wrong)


def test_the_setting_is_read_from_the_environment(tmp_path):
    environment = {
        "CASEMATE_AUTH_IDENTITY_DIR": str(tmp_path),
        "CASEMATE_AUTH_AUDIT_FILE": str(tmp_path / "audit"),
        "CASEMATE_AUTH_KEK_FILE": str(tmp_path / "kek"),
        "CASEMATE_AUTH_DATABASE_HOST": "/run",
        "CASEMATE_AUTH_DATABASE_NAME": "auth",
        "CASEMATE_AUTH_DATABASE_USER": "auth",
        "CASEMATE_AUTH_DATABASE_PASSWORD": "x",
        "CASEMATE_AUTH_TOKEN_KEYS": ARN,
        "CASEMATE_AUTH_HTTP_LISTEN": "[::]:7404",
        "CASEMATE_AUTH_HTTP_URL": "https://tokens.example:443",
    }
    settings = load_settings(AuthSettings, environment, component="auth")
    assert settings.token_keys == (ARN,)
    assert (settings.http_address, settings.http_url) == ("[::]:7404", "https://tokens.example:443")
    with pytest.raises(CasemateError, match="HTTP_URL"):
        load_settings(AuthSettings, {**environment, "CASEMATE_AUTH_HTTP_URL": "http://x/y"}, component="auth")
