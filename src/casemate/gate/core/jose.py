"""The strict front door for tokens: what does not look exactly like ours goes no further.

It fixes the one spelling that is accepted and the three header members that may
be there, before any library parses anything. Nothing here is trusted: the result
is named for that.

If this fails: an odd token reaches PyJWT, which still checks the signature with
the algorithm of the key, issuer and audience; and `verifier` checks all claims again.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Any, Final

from casemate.errors import Unauthenticated

MAX_TOKEN_LENGTH: Final = 4096
"""Characters. Metadata may hold 8,192 bytes in all; PyJWT needs 66 ms to refuse a megabyte."""
TOKEN_TYPE: Final = "at+jwt"  # noqa: S105  # RFC 9068 section 2.1, not a password
_HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ"})
_ALGORITHMS: Final = frozenset({"EdDSA", "ES256"})
# Both algorithms sign with 64 bytes: 86 characters, of which the last carries four zero bits.
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]{2,512})\.([A-Za-z0-9_-]{2,4000})\.[A-Za-z0-9_-]{85}[AQgw]")
_KID: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedToken:
    """A token of the right form, of which nothing is proven.

    Attributes:
        text: the compact serialization as it came.
        unverified_kid: the key that it says it was signed by.
        unverified_algorithm: the algorithm that it says; the key decides.
        payload: the claims' JSON, not parsed yet.
    """

    text: str
    unverified_kid: str
    unverified_algorithm: str
    payload: bytes

    def read_claims(self) -> dict[str, Any]:
        """The claims, still unproven: without duplicate members, floats or constants.

        Apart from the header, so that a token of a key that nobody has costs no more than its header.

        Raises:
            Unauthenticated: TOKEN_INVALID.
        """
        return _parse_object(self.payload)


def parse_token(text: str) -> UnverifiedToken:
    """Reads a compact JWS of exactly our form; of its claims, only that they are there.

    Source: RFC 7515 section 3.1, RFC 9068 section 2.1, RFC 8725 section 3.

    Raises:
        Unauthenticated: TOKEN_INVALID, whatever is wrong with it.
    """
    if len(text) > MAX_TOKEN_LENGTH:
        raise Unauthenticated("token too long")
    compact = _COMPACT.fullmatch(text)
    if compact is None:
        raise Unauthenticated("token is not a compact JWS of ours")
    header = _parse_object(_decode_segment(compact[1]))
    if header.keys() != _HEADER_MEMBERS:
        raise Unauthenticated("token header members are not alg, kid and typ")
    kid, algorithm = header["kid"], header["alg"]
    if header["typ"] != TOKEN_TYPE:
        raise Unauthenticated("token is of another type")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise Unauthenticated("token algorithm is none of ours")
    if not isinstance(kid, str) or _KID.fullmatch(kid) is None:
        raise Unauthenticated("token key id is not a thumbprint")
    return UnverifiedToken(
        text=text,
        unverified_kid=kid,
        unverified_algorithm=algorithm,
        payload=_decode_segment(compact[2]),
    )


def _decode_segment(segment: str) -> bytes:
    try:
        raw = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except Base64Error as error:
        raise Unauthenticated("token segment is not base64url") from error
    if urlsafe_b64encode(raw).rstrip(b"=").decode() != segment:
        raise Unauthenticated("token segment is not canonical base64url")
    return raw


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        # A nested object would need a limit of depth; the length bounds it, and the parser's own limit ends it.
        parsed = json.loads(raw, object_pairs_hook=_unique, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("token segment is not JSON of ours") from error
    if not isinstance(parsed, dict):
        raise Unauthenticated("token segment is not an object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse(text: str) -> object:
    raise ValueError(f"number of {len(text)} characters is not an integer")
