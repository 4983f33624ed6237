"""How clients prove themselves: one answer to everything that is wrong, after the same work."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.errors import AlreadyExists, Exhausted, InvalidRequest, NotFound, Reason, Unauthenticated
from casemate.sealing.authority_rows import AuthorityKey
from casemate.secret import Secret
from services.auth.client_authentication import ClientAuthenticator, Credential
from services.auth.client_secrets import SecretDigests, generate_secret
from services.auth.credential_records import ClientSecret
from services.auth.records import Client, Tenant
from services.auth.store.credentials import CredentialStore
from tests.services.auth.identities import ISSUER, Signatory
from tests.services.auth.lines import HandClock
from tests.services.auth.world import client_message, failure, spiffe_id

BY_JWT = admin.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT
BY_SECRET = admin.CLIENT_AUTHENTICATION_SECRET
ALLOWED = {"audiences": ("inference",), "scopes": ("models.infer",)}


async def _by_secret(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "batch", authentication=BY_SECRET, **ALLOWED)
    made = await operator.administer(
        "CreateClientSecret", credentials.CreateClientSecretRequest(client_id="acme-batch")
    )
    return operator, caller, made


async def _by_key(world, signatory, name="batch"):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", name, authentication=BY_JWT, **ALLOWED)
    request = credentials.AddClientKeyRequest(client_id=f"acme-{name}", public_key=signatory.der)
    key_id = (await operator.administer("AddClientKey", request)).key_id
    return operator, caller, key_id


async def _unknown(call):
    error = await failure(call)
    assert (type(error), error.reason) == (Unauthenticated, Reason.CLIENT_UNKNOWN)
    return error


async def test_a_secret_proves_its_client_from_its_own_certificate(world):
    operator, caller, made = await _by_secret(world)
    issued = await caller.token("inference", client_id="acme-batch", secret=made.secret)
    token = world.verified(issued.access_token, "inference")
    assert (token.client_id, token.tenant) == ("acme-batch", "acme")
    thief = await world.enlist(operator, "acme", "thief", **ALLOWED)
    await _unknown(thief.token("inference", client_id="acme-batch", secret=made.secret))
    await thief.token("inference")


async def test_e1_wrong_unknown_and_disabled_get_one_answer(world):
    operator, caller, made = await _by_secret(world)
    answers = [
        await _unknown(
            caller.token(
                "inference",
                client_id="acme-batch",
                secret=made.secret[:-1] + ("y" if made.secret.endswith("x") else "x"),
            )
        ),
        await _unknown(caller.token("inference", client_id="nobody", secret=made.secret)),
        await _unknown(caller.token("inference", client_id="nobody\x00", secret=made.secret)),
        await _unknown(caller.token("inference", client_id="acme-batch", secret="")),
        await _unknown(caller.token("inference", client_id="acme-batch")),
        await _unknown(caller.token("inference")),
    ]
    await caller.token("inference", client_id="acme-batch", secret=made.secret)
    await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-batch"))
    answers.append(await _unknown(caller.token("inference", client_id="acme-batch", secret=made.secret)))
    # The request's identifier apart, not a byte tells one from another.
    assert len({re.sub(r"request [^)]*", "", str(answer)) for answer in answers}) == 1
    assert {(answer.violations, answer.retry_after) for answer in answers} == {((), None)}


async def test_a_secret_is_shown_once_and_kept_as_a_digest_that_a_dump_cannot_try(world):
    _, _, made = await _by_secret(world)
    assert re.fullmatch(r"cmsk_[A-Za-z0-9_-]{43}[0-9a-f]{8}", made.secret)
    rows = await world.sql("SELECT s::text FROM client_secret AS s")
    assert made.secret not in rows[0][0]

    digest = (await world.sql("SELECT digest FROM client_secret"))[0][0]
    assert digest not in {hashlib.sha256(made.secret.encode()).digest(), made.secret.encode()}


async def test_two_secrets_are_alive_while_one_replaces_the_other(world):
    operator, caller, first = await _by_secret(world)
    request = credentials.CreateClientSecretRequest(client_id="acme-batch")
    second = await operator.administer("CreateClientSecret", request)
    assert isinstance(await failure(operator.administer("CreateClientSecret", request)), AlreadyExists)
    for made in (first, second):
        await caller.token("inference", client_id="acme-batch", secret=made.secret)
    delete = credentials.DeleteClientSecretRequest(client_id="acme-batch", id=first.id)
    await operator.administer("DeleteClientSecret", delete)
    await _unknown(caller.token("inference", client_id="acme-batch", secret=first.secret))
    await caller.token("inference", client_id="acme-batch", secret=second.secret)
    assert isinstance(await failure(operator.administer("DeleteClientSecret", delete)), NotFound)
    await operator.administer("CreateClientSecret", request)


async def test_a_secret_swapped_by_sql_is_refused_and_sounds_the_alarm(world):
    operator, caller, made = await _by_secret(world)
    await world.enlist(operator, "acme", "other", authentication=BY_SECRET, **ALLOWED)
    await world.sql("UPDATE client_secret SET client_id = 'acme-other'")
    await _unknown(caller.token("inference", client_id="acme-batch", secret=made.secret))
    await _unknown(world.client("acme", "other").token("inference", client_id="acme-other", secret=made.secret))
    assert world.alarms


async def test_a_client_that_sql_lets_in_by_certificate_alone_is_refused(world):
    _, caller, made = await _by_secret(world)
    await world.sql("UPDATE client SET authentication = 'certificate' WHERE client_id = 'acme-batch'")
    await _unknown(caller.token("inference"))
    await _unknown(caller.token("inference", client_id="acme-batch", secret=made.secret))
    assert world.alarms


async def test_clients_may_share_a_certificate_if_each_proves_itself(world):
    operator, caller, made = await _by_secret(world)
    shared = client_message("acme", "batch2")
    shared.spiffe_id = spiffe_id("acme", "batch")
    shared.authentication = BY_SECRET
    await operator.administer("CreateClient", admin.CreateClientRequest(client=shared))
    second = await operator.administer(
        "CreateClientSecret", credentials.CreateClientSecretRequest(client_id="acme-batch2")
    )
    for client_id, secret in (("acme-batch", made.secret), ("acme-batch2", second.secret)):
        issued = await caller.token("inference", client_id=client_id, secret=secret)
        assert world.verified(issued.access_token, "inference").client_id == client_id
    await _unknown(caller.token("inference", client_id="acme-batch2", secret=made.secret))


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_an_assertion_proves_its_client_once(world, algorithm):
    signatory = Signatory(algorithm)
    operator, caller, key_id = await _by_key(world, signatory)
    assertion = signatory.assertion("acme-batch")
    issued = await caller.token("inference", assertion=assertion)
    assert world.verified(issued.access_token, "inference").client_id == "acme-batch"
    await _unknown(caller.token("inference", assertion=assertion))
    await caller.token("inference", assertion=signatory.assertion("acme-batch"), client_id="acme-batch")
    remove = credentials.RemoveClientKeyRequest(client_id="acme-batch", key_id=key_id)
    await operator.administer("RemoveClientKey", remove)
    await _unknown(caller.token("inference", assertion=signatory.assertion("acme-batch")))


async def test_e5_an_assertion_that_is_not_exactly_right_proves_nobody(world):
    signatory, others = Signatory(), Signatory()
    _, caller, _ = await _by_key(world, signatory)
    await _by_key(world, others, "other")
    now = int(datetime.now(UTC).timestamp())
    wrong = [
        signatory.assertion("acme-batch", aud=[ISSUER]),
        signatory.assertion("acme-batch", aud=[ISSUER, "https://other.example"]),
        signatory.assertion("acme-batch", aud="https://other.example"),
        signatory.assertion("acme-batch", aud=ISSUER + "/"),
        signatory.assertion("acme-batch", exp=now + 600),
        signatory.assertion("acme-batch", exp=now - 1),
        signatory.assertion("acme-batch", exp=None),
        signatory.assertion("acme-batch", exp=str(now + 60)),
        signatory.assertion("acme-batch", exp=True),
    ]
    for assertion in wrong:
        await _unknown(caller.token("inference", assertion=assertion))
    await caller.token("inference", assertion=signatory.assertion("acme-batch"))


async def test_e5_an_assertion_of_or_about_another_proves_nobody(world):
    signatory, others = Signatory(), Signatory()
    _, caller, _ = await _by_key(world, signatory)
    await _by_key(world, others, "other")
    header = {"jwk": {"kty": "OKP"}}
    claims = {"iss": "acme-batch", "sub": "acme-batch", "aud": ISSUER, "jti": "x"}
    wrong = [
        signatory.assertion("acme-batch", sub="acme-other"),
        signatory.assertion("acme-batch", iss="acme-other"),
        signatory.assertion("acme-batch", jti=None),
        signatory.assertion("acme-batch", jti="\ud800"),
        signatory.assertion("acme-batch", exp=datetime.now(UTC).timestamp() + 60.5),
        signatory.assertion("acme-batch", iat=int(datetime.now(UTC).timestamp()) + 60),
        others.assertion("acme-batch"),
        Signatory("ES256").assertion("acme-batch"),
        signatory.sign({**claims, "exp": int(datetime.now(UTC).timestamp()) + 60}, **header),
        "a.b.c",
    ]
    for assertion in wrong:
        await _unknown(caller.token("inference", assertion=assertion))


async def test_e5_an_assertion_by_a_name_that_no_client_can_have_is_refused_as_anybodys(world):
    """Looked up as it stands, a NUL would be the database's error, and tell this name from others."""
    signatory = Signatory()
    _, caller, _ = await _by_key(world, signatory)
    names = ("nobody", "nobody\x00", "acme-batch\x00", "-", "", "a" * 129, "b\u00e9", "acme-batch\n")
    refusals = [await _unknown(caller.token("inference", assertion=signatory.assertion(name))) for name in names]
    assert len({re.sub(r"request [^)]*", "", str(refusal)) for refusal in refusals}) == 1
    await caller.token("inference", assertion=signatory.assertion("acme-batch"))


async def test_e6_a_client_that_names_another_than_its_certificate_is_refused(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", **ALLOWED)
    await world.enlist(operator, "acme", "other", **ALLOWED)
    await _unknown(caller.token("inference", client_id="acme-other"))
    await caller.token("inference", client_id="acme-caller")
    signatory = Signatory()
    _, batch, _ = await _by_key(world, signatory)
    await _unknown(caller.token("inference", assertion=signatory.assertion("acme-batch")))
    await batch.token("inference", assertion=signatory.assertion("acme-batch"))


async def test_e7_many_bad_attempts_slow_their_own_identity_alone(world):
    operator, caller, made = await _by_secret(world)
    attacker = await world.enlist(operator, "acme", "attacker", **ALLOWED)
    errors = [await failure(attacker.token("inference", client_id="acme-batch", secret="guess")) for _ in range(20)]
    assert [type(error) for error in errors[:10]] == [Unauthenticated] * 10
    slowed = errors[-1]
    assert isinstance(slowed, Exhausted)
    assert slowed.retry_after is not None
    assert slowed.reason is Reason.RATE_LIMITED
    # Neither the victim, whose name was used, nor anyone else is slower for it.
    await caller.token("inference", client_id="acme-batch", secret=made.secret)
    await operator.token("auth")


async def test_keys_and_secrets_are_for_clients_that_use_them(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "caller", **ALLOWED)
    secret = credentials.CreateClientSecretRequest(client_id="acme-caller")
    assert isinstance(await failure(operator.administer("CreateClientSecret", secret)), NotFound)
    key = credentials.AddClientKeyRequest(client_id="acme-caller", public_key=Signatory().der)
    assert isinstance(await failure(operator.administer("AddClientKey", key)), NotFound)
    weak = credentials.AddClientKeyRequest(client_id="acme-caller", public_key=b"junk")
    assert isinstance(await failure(operator.administer("AddClientKey", weak)), InvalidRequest)


async def test_an_administrator_of_a_tenant_makes_no_secret_of_another(world):
    operator, _, _ = await _by_secret(world)
    stranger = await world.enlist(operator, "globex", "admin", audiences=("auth",), scopes=("admin",))
    request = credentials.CreateClientSecretRequest(client_id="acme-batch")
    assert isinstance(await failure(stranger.administer("CreateClientSecret", request)), NotFound)


class _Counting:
    """What a whole authentication asks of the database."""

    def __init__(self):
        self.statements = []

    def __call__(self, query):
        self.statements.append(query.query)


async def test_unknown_and_wrong_cost_the_same_work(shelf, monkeypatch):
    """The same statements, and as many hashes: of rows that are read, and of rows that are not there."""
    clock = HandClock()
    await shelf.store.add_tenant(Tenant(name="acme", created_at=clock.now()))
    client = Client(
        client_id="acme-batch",
        tenant="acme",
        spiffe_id=spiffe_id("acme", "batch"),
        audiences=("inference",),
        scopes=("models.infer",),
        enabled=True,
        created_at=clock.now(),
        authentication="client_secret",
    )
    await shelf.store.add_client(client)
    await shelf.store.add_client(replace(client, client_id="acme-off", enabled=False))
    store, digests = CredentialStore(pool=shelf.pool, tables=shelf.tables), SecretDigests(key=shelf.key)
    secret = generate_secret()
    for name in ("acme-batch", "acme-off"):
        record = ClientSecret(id=name, client_id=name, digest=digests.digest(name, secret), created_at=clock.now())
        await store.add_secret(record, within=None)
    macs = []
    counted = AuthorityKey.mac

    def mac(self, table, primary_key, columns):
        macs.append(table)
        return counted(self, table, primary_key, columns)

    monkeypatch.setattr(AuthorityKey, "mac", mac)
    authenticator = ClientAuthenticator(store=store, digests=digests, issuer=ISSUER, clock=clock)
    work = []
    wrong = Secret("x" * len(secret.reveal()))
    for client_id, shown in (("nobody", secret), ("acme-batch", wrong), ("acme-off", secret), ("acme-batch", secret)):
        counting = _Counting()
        async with shelf.pool.acquire() as connection:
            # The one idle connection of the pool, so it is the one that is used next.
            connection.add_query_logger(counting)
        macs.clear()
        credential = Credential(client_id=client_id, secret=shown)
        if (client_id, shown) == ("acme-batch", secret):
            await authenticator.authenticate(spiffe_id=client.spiffe_id, credential=credential)
        else:
            with pytest.raises(Unauthenticated):
                await authenticator.authenticate(spiffe_id=client.spiffe_id, credential=credential)
        work.append((tuple(counting.statements), tuple(macs)))
        async with shelf.pool.acquire() as connection:
            connection.remove_query_logger(counting)
    assert len(set(work)) == 1
    assert sorted(work[0][1]) == ["client", "client_secret", "client_secret", "client_secret"]
    assert len(work[0][0]) >= 2
