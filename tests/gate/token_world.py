"""What the tests beside this share."""

from __future__ import annotations

import json

import jwt
import pytest

from casemate.gate.core.cache import TokenCache
from casemate.gate.core.verifier import TokenVerifier, VerifiedToken
from tests.gate.world import AUDIENCE, ISSUER, SetClock, TokenMint, base64url

THUMBPRINT = "x" * 43


CLOCK = SetClock()


VERIFIER = TokenVerifier(issuer=ISSUER, audience=AUDIENCE)


@pytest.fixture(scope="module", params=["EdDSA", "ES256"])
def mint(request):
    return TokenMint(request.param)


def verify(mint: TokenMint, token: str) -> VerifiedToken:
    return VERIFIER.verify(token, keys={mint.key.kid: mint.key}, now=CLOCK.now())


def claims(mint: TokenMint, **changes):
    return mint.claims(now=CLOCK.now(), thumbprint=THUMBPRINT, **changes)


NOW = int(CLOCK.now().timestamp())  # of the import: what is odd must stay so for the whole suite


def jwt_like(mint: TokenMint, payload: dict) -> str:
    """A really signed token of any payload; the encoder of PyJWT would refuse some."""
    header = {"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}
    return signed(mint, json.dumps(header).encode(), json.dumps(payload).encode())


def signed(mint: TokenMint, header: bytes, payload: bytes) -> str:
    algorithm = jwt.get_algorithm_by_name(mint.algorithm)
    text = f"{base64url(header)}.{base64url(payload)}"
    return f"{text}.{base64url(algorithm.sign(text.encode(), mint.private))}"


class Lookup:
    """A cache, the mint behind it, and how often it verified."""

    def __init__(self, **bounds):
        self.mint = TokenMint()
        self.cache = TokenCache(**bounds)
        self.verified = 0

    def look(self, text, *, monotonic=0.0, key_epoch=0, now=None):
        def check():
            self.verified += 1
            return verify(self.mint, text)

        return self.cache.verified(text, now=now or CLOCK.now(), monotonic=monotonic, key_epoch=key_epoch, verify=check)

    def token(self, **changes):
        return self.mint.token(claims(self.mint, **changes))
