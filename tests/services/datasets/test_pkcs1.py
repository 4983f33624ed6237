"""PKCS#1 v1.5: refused, unless an operator asked for it by name."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from casemate.errors import SignatureInvalid
from casemate.signing.dsse import pae
from casemate.signing.keys import SigningKey
from casemate.signing.statements import DATASET_MANIFEST_TYPE
from tests.services.datasets.world import manifest_of


def envelope_by(key: SigningKey) -> bytes:
    payload = manifest_of().to_statement()
    signature = key._key.sign(pae(DATASET_MANIFEST_TYPE, payload), padding.PKCS1v15(), hashes.SHA256())
    signatures = [{"keyid": key.public.key_id, "sig": base64.b64encode(signature).decode()}]
    encoded = base64.b64encode(payload).decode()
    return json.dumps({"payloadType": DATASET_MANIFEST_TYPE, "payload": encoded, "signatures": signatures}).encode()


async def test_a_pkcs1_signature_is_taken_only_where_the_setting_says_so(stopped_world):
    assert not stopped_world.settings.unsafe_accept_pkcs1
    key = SigningKey.generate("rsa-pss-sha256")
    stopped_world.signers.append(stopped_world.signer(key))
    stopped_world.tell()
    envelope = envelope_by(key)
    async with stopped_world.serve() as world:
        with pytest.raises(SignatureInvalid):
            await world.actor().push_all(envelope)
    stopped_world.settings = replace(stopped_world.settings, unsafe_accept_pkcs1=True)
    async with stopped_world.serve() as world:
        trainer = world.actor()
        assert (await trainer.push_all(envelope)).version == 1
        assert len((await trainer.pull())[1]) == 3
