"""The operator's commands about credentials, issuers and keys, against the real service."""

from __future__ import annotations

import asyncio
import json

from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from casemate.cli.main import command
from casemate.signing.keys import SigningKey
from casemate.signing.registration import sign_registration
from tests.services.auth.identities import GIVEN_TO, IDP, Signatory
from tests.services.auth.world import spiffe_id
from tests.support.authority import TRUST_DOMAIN


def _pem(public_key):
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


UNTIL = ("--expires", "2040-01-02")


class Operator:
    """Runs `casemate …` as the first operator, in a thread beside the loop that serves it."""

    def __init__(self, world, state):
        directory = world.leaf("client", tenant="casemate", name="operator")
        self._state = ["--state", str(state)]
        self._who = ["--identity", str(directory), "--auth", f"127.0.0.1:{world.running.port}"]
        self._who += ["--trust-domain", TRUST_DOMAIN]

    async def say(self, *words, values=()):
        said = [*self._state, *words, *self._who, *values]
        result = await asyncio.to_thread(CliRunner().invoke, command, said)
        assert result.exception is None, (words, result.output, result.exception)
        return result.stdout.strip()


async def test_an_operator_sets_up_clients_by_secret_key_and_exchange(world, tmp_path):
    operator = Operator(world, tmp_path)
    await operator.say("tenant", "create", "acme")
    allowed = ["--tenant", "acme", "--audience", "inference", "--scope", "models.infer"]
    for name, method in (("batch", "secret"), ("job", "private-key-jwt"), ("gateway", "certificate")):
        uri = ["--spiffe-id", spiffe_id("acme", name)]
        await operator.say("client", "create", f"acme-{name}", *allowed, *uri, "--authentication", method)

    secret = (await operator.say("client", "secret", "create", "acme-batch")).splitlines()[-1]
    await world.client("acme", "batch").token("inference", client_id="acme-batch", secret=secret)

    signatory, idp = Signatory(), Signatory(kid="k1")
    (tmp_path / "job.pub").write_bytes(_pem(signatory.private_key.public_key()))
    (tmp_path / "idp.pub").write_bytes(_pem(idp.private_key.public_key()))
    added = await operator.say("client", "key", "add", "acme-job", str(tmp_path / "job.pub"))
    await world.client("acme", "job").token("inference", assertion=signatory.assertion("acme-job"))
    await operator.say("client", "key", "remove", "acme-job", added.split()[-1])

    where = ["--url", IDP, "--audience", GIVEN_TO, "--key", f"k1={tmp_path / 'idp.pub'}"]
    await operator.say("issuer", "register", "idp", "--tenant", "acme", *where)
    grant = await operator.say("issuer", "allow", "acme-gateway", "--source", "idp", "--refresh", *allowed, *UNTIL)
    listed = json.loads(await operator.say("issuer", "allowed", "--tenant", "acme", "--json"))
    assert (listed["id"], listed["source"], listed["refresh"]) == (grant, "idp", True)
    assert listed["expires"] == "2040-01-02T00:00:00+00:00"
    await operator.say("issuer", "forbid", grant)
    await operator.say("issuer", "remove", "idp")
    assert await operator.say("issuer", "allowed", "--tenant", "acme") == ""


async def test_an_operator_sees_the_token_keys_and_ends_one(world, tmp_path):
    operator = Operator(world, tmp_path)
    key = json.loads(await operator.say("token-key", "list", "--json"))
    assert (key["state"], key["until"]) == ("active", None)
    await operator.say("token-key", "revoke", key["kid"])
    async with asyncio.timeout(5):
        while key["kid"] in world.running.trust.current.keys:
            await asyncio.sleep(0)
    states = [json.loads(line)["state"] for line in (await operator.say("token-key", "list", "--json")).splitlines()]
    assert sorted(states) == ["active", "revoked"]


async def test_an_operator_gives_a_signer_a_window_and_ends_it_since_a_moment(world, tmp_path):
    operator = Operator(world, tmp_path)
    await operator.say("tenant", "create", "acme")
    key = SigningKey.generate()
    (tmp_path / "proof").write_bytes(sign_registration("acme", "supplier", key, f"auth.{TRUST_DOMAIN}"))
    (tmp_path / "signer.pub").write_bytes(_pem(load_der_public_key(key.public.der)))
    window = ["--tenant", "acme", "--role", "supplier", "--valid-until", "2030-01-02"]
    arguments = [str(tmp_path / "signer.pub"), "--proof", str(tmp_path / "proof"), *window]
    key_id = (await operator.say("signer", "register", *arguments)).split()[-1]
    await operator.say("signer", "revoke", key_id, "--compromised-since", "2026-03-04T05:06:07")
    row = (await world.sql("SELECT valid_until::text, compromised_since::text FROM signer"))[0]
    assert row[0].startswith("2030-01-02 00:00:00")
    assert row[1].startswith("2026-03-04 05:06:07")


async def test_an_operator_revokes_by_command_what_it_names(world, tmp_path):
    operator = Operator(world, tmp_path)
    await operator.say("tenant", "create", "acme")
    allowed = ["--tenant", "acme", "--audience", "inference", "--scope", "models.infer"]
    await operator.say("client", "create", "acme-job", *allowed, "--spiffe-id", spiffe_id("acme", "job"))
    issued = await world.client("acme", "job").token("inference")
    session = world.verified(issued.access_token, "inference")
    for kind, value in (
        ("token", issued.token_id),
        ("session", "some-session"),
        ("client", "acme-job"),
        ("subject", "acme-job"),
        ("certificate", session.certificate_thumbprint),
        ("spiffe-id", spiffe_id("acme", "job")),
    ):
        assert (await operator.say("revoke", kind, values=["--", value])).startswith("revoked: revocation-")
        rows = await world.sql("SELECT 1 FROM revocation WHERE kind = $1 AND value = $2", kind.replace("-", "_"), value)
        assert rows, kind
