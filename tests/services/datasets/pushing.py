"""What the tests beside this share."""

from __future__ import annotations

import json

import pytest

from casemate.errors import (
    CasemateError,
)
from tests.services.datasets.world import (
    Actor,
    manifest_message,
)

OTHER_BYTES = b"1,one\n2,twO\n"


NEVER = b"3,three\n4,four\n"


def unsigned(envelope: bytes) -> bytes:
    return json.dumps({**json.loads(envelope), "signatures": []}).encode()


def forged(envelope: bytes) -> bytes:
    parsed = json.loads(envelope)
    parsed["signatures"][0]["sig"] = "A" * 86 + "=="
    return json.dumps(parsed).encode()


async def refusal(actor: Actor, envelope: bytes) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        await actor.push([manifest_message(envelope)])
    return caught.value
