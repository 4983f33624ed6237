"""Generated client secrets: 256 random bits, shown once, kept as an HMAC.

A slow hash would add nothing to 256 random bits, and would be a lever to stall the
service. The HMAC's key (a pepper) lies sealed under the KEK, so a dump of the
database does not even tell whether a guess is right.

If this fails: whoever reads the database passes as a client that proves itself by
secret, from a certificate of the client's own SPIFFE ID alone.
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from collections.abc import Sequence
from typing import Final

from casemate.errors import Reason, Unauthenticated
from casemate.sealing.authority_rows import AuthorityKey
from casemate.secret import Secret
from services.auth.store.credentials import MAX_SECRETS

PREFIX: Final = "cmsk_"
"""By which scanners of source code find a secret that was leaked."""
_LABEL: Final = "client_secret"
_MAX_LENGTH: Final = 256
_NOTHING: Final = bytes(32)


def generate_secret() -> Secret[str]:
    """A new secret with a checksum, so that scanners tell it from random text."""
    body = secrets.token_urlsafe(32)
    return Secret(f"{PREFIX}{body}{zlib.crc32(body.encode()):08x}")


class SecretDigests:
    """Digests of secrets, and the comparison with a presented one."""

    def __init__(self, *, key: AuthorityKey) -> None:
        self._key = key

    def digest(self, client_id: str, secret: Secret[str]) -> bytes:
        """What is stored of a client's secret."""
        return self._key.mac(_LABEL, client_id, {"secret": secret.reveal()})

    def verify(self, client_id: str, presented: Secret[str], digests: Sequence[bytes]) -> None:
        """Requires that one of the stored digests is the presented secret's. Always the same work.

        Raises:
            Unauthenticated: `CLIENT_UNKNOWN`.
        """
        # A longer text is cut: no secret is that long, and so the work does not grow with it.
        candidate = self.digest(client_id, Secret(presented.reveal()[:_MAX_LENGTH]))
        known = [*digests, *([_NOTHING] * MAX_SECRETS)][:MAX_SECRETS]
        if not any([hmac.compare_digest(candidate, digest) for digest in known]):  # noqa: C419  # all of them, always
            raise Unauthenticated("no secret of the client", reason=Reason.CLIENT_UNKNOWN)
