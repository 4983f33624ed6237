"""Tokens as no mint of ours makes them, with real signatures where that is the point."""

from __future__ import annotations

import base64
import json

from tests.gate.world import base64url, thumbprint_of


def rewritten(mint, token, *, signature=None, **header):
    """The token's payload under another header, signed with the real key unless a signature is given."""
    payload = base64.urlsafe_b64decode(token.split(".")[1] + "==")
    members = {"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt", **header}
    head = json.dumps({name: value for name, value in members.items() if value is not ...}).encode()
    if signature is None:
        return mint.sign_raw(head, payload)
    signed = f"{base64url(head)}.{base64url(payload)}"
    return f"{signed}.{base64url(signature(signed.encode()))}"


def signed_payload(scene, payload):
    mint = scene.world.mint
    head = json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    return mint.sign_raw(head, payload if isinstance(payload, bytes) else json.dumps(payload).encode())


def claims_of(scene, **changes):
    world = scene.world
    return world.mint.claims(now=world.clock.now(), thumbprint=thumbprint_of(scene.trainer), **changes)


def header_of(mint):
    return json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
