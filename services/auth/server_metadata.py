"""What this token service says of itself: RFC 8414 metadata and its key set (RFC 7517)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate.gate.core.records import VerificationKey
from casemate.gate.core.trust import TrustSnapshot
from services.auth.scopes import OURS, Audiences

MAX_AGE: Final = timedelta(minutes=5)
"""For how long a key set may be kept: keys are published for longer before they sign."""

GRANT_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_GRANTS: Final = ("client_credentials", "refresh_token", GRANT_EXCHANGE)
_METHODS: Final = ("tls_client_auth", "private_key_jwt", "client_secret_post")
_HTTP_METHODS: Final = (*_METHODS, "client_secret_basic")
_ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "PS256", "RS256")


class ServerMetadata:
    """Describes the service as it is now.

    Args:
        issuer: the `iss` of its tokens.
        trust: the present trust, for the keys.
        audiences: that its tokens may be for.
    """

    def __init__(self, *, issuer: str, trust: Callable[[], TrustSnapshot], audiences: Audiences = OURS) -> None:
        self._audiences = audiences
        self.issuer = issuer
        self.max_age = MAX_AGE
        self._trust = trust

    def described(self) -> dict[str, Any]:
        """Members of RFC 8414 section 2 and RFC 8705 section 3.3 that do not depend on an address."""
        return {
            "issuer": self.issuer,
            "grant_types_supported": list(_GRANTS),
            "token_endpoint_auth_methods_supported": list(_METHODS),
            "token_endpoint_auth_signing_alg_values_supported": list(_ALGORITHMS),
            "scopes_supported": sorted(self._audiences.scopes),
            "tls_client_certificate_bound_access_tokens": True,
        }

    def document(self, url: str) -> dict[str, Any]:
        """The metadata of RFC 8414 section 2 for a face at this URL; only what is served there.

        Every endpoint needs the client's certificate, so those of RFC 8705 section 5 are the same.
        """
        endpoints = {
            "token_endpoint": f"{url}/oauth2/token",
            "revocation_endpoint": f"{url}/oauth2/revoke",
            "introspection_endpoint": f"{url}/oauth2/introspect",
        }
        proofs = {
            f"{name}_auth_{what}_supported": list(values)
            for name in endpoints
            for what, values in (("methods", _HTTP_METHODS), ("signing_alg_values", _ALGORITHMS))
        }
        return {
            **self.described(),
            **endpoints,
            **proofs,
            "mtls_endpoint_aliases": endpoints,
            "jwks_uri": f"{url}/.well-known/jwks.json",
            "response_types_supported": [],  # required, and there is no authorization endpoint
        }

    def key_set(self) -> list[dict[str, str]]:
        """The keys that verify now or will soon, by `kid`."""
        return [_json_web_key(key) for _, key in sorted(self._trust().keys.items())]


def _json_web_key(key: VerificationKey) -> dict[str, str]:
    named = {"kid": key.kid, "alg": key.algorithm, "use": "sig"}
    public = key.public_key
    if isinstance(public, Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(public.public_bytes_raw()), **named}
    point = public.public_numbers()
    x, y = (_base64url(number.to_bytes(32)) for number in (point.x, point.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **named}


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
