"""The text of refresh tokens: derived from a family's row, stored nowhere.

A token is `rt1.<family>.<generation>.<mac>`. The MAC's key is the service's own and
lies sealed under the KEK, so a dump of the database neither mints a token nor
tells whether one is genuine; and the successor of a token can be derived again
when the answer that carried it was lost.

If this fails: whoever reads the database refreshes other clients' tokens, from a
certificate of the very SPIFFE ID alone; the family's limits still end it.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass
from typing import Final

from casemate.errors import Reason, Unauthenticated
from casemate.sealing.authority_rows import AuthorityKey
from casemate.secret import Secret
from services.auth.records import Family

PREFIX: Final = "rt1"
_LABEL: Final = "refresh_token"
_MAX_LENGTH: Final = 128
_FORM: Final = re.compile(r"rt1\.([A-Za-z0-9_-]{22})\.([1-9][0-9]{0,17})\.[A-Za-z0-9_-]{43}")
_NOBODY: Final = bytes(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedToken:
    """A refresh token of the right form, of which nothing is proven."""

    text: Secret[str]
    unverified_family_id: str
    unverified_generation: int


def new_family_id() -> str:
    """128 random bits, base64url; also the `sid` of the family's access tokens."""
    return secrets.token_urlsafe(16)


def new_salt() -> bytes:
    """128 random bits, so that the key alone derives no token."""
    return secrets.token_bytes(16)


def looks_like_refresh_token(text: str) -> bool:
    """Whether a text claims to be a refresh token; proves nothing."""
    return text.startswith(f"{PREFIX}.")


def parse_refresh_token(text: str) -> PresentedToken:
    """Reads the parts of a token.

    Raises:
        Unauthenticated: `GRANT_INVALID`: it is none of ours.
    """
    form = _FORM.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if form is None:
        raise invalid_grant("not a refresh token")
    return PresentedToken(text=Secret(text), unverified_family_id=form[1], unverified_generation=int(form[2]))


class RefreshTokens:
    """Derives tokens and verifies presented ones. One MAC each."""

    def __init__(self, *, key: AuthorityKey) -> None:
        self._key = key

    def current(self, family: Family) -> Secret[str]:
        """The one token of a family that may be used."""
        return Secret(self._text(family.id, family.generation, family.salt))

    def verify(self, presented: PresentedToken, family: Family | None) -> int:
        """The generation of a token that this service derived for this family, be it current or old.

        A family that does not exist costs the same work as one that does.

        Raises:
            Unauthenticated: `GRANT_INVALID`: it was not derived here.
        """
        salt = _NOBODY if family is None else family.salt
        derived = self._text(presented.unverified_family_id, presented.unverified_generation, salt)
        # Compared in its one canonical spelling.
        genuine = secrets.compare_digest(presented.text.reveal().encode(), derived.encode())
        if family is None or not genuine:
            raise invalid_grant("a refresh token that was not derived here")
        return presented.unverified_generation

    def _text(self, family_id: str, generation: int, salt: bytes) -> str:
        mac = self._key.mac(_LABEL, family_id, {"generation": generation, "salt": salt})
        return f"{PREFIX}.{family_id}.{generation}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def invalid_grant(detail: str) -> Unauthenticated:
    """The one answer to every refresh token that is not accepted: which reason, only the log says."""
    return Unauthenticated(detail, reason=Reason.GRANT_INVALID)
