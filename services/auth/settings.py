"""What the auth service is told at start: `CASEMATE_AUTH_…` and the shared `CASEMATE_TRUST_…`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.errors import ConfigurationError
from casemate.sealing.provider import KekSettings
from casemate.settings import (
    DatabaseSettings,
    IdentitySettings,
    ListenSettings,
    TrustSettings,
    address,
    path,
    setting,
)
from services.auth.kms_token_keys import token_key_places
from services.auth.scopes import OURS, Audiences, audiences

_URL: Final = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?", re.ASCII)


def _https_url(value: str) -> str:
    if _URL.fullmatch(value) is None:
        raise ValueError('must be "https://" and a host, with a port or without, and nothing after it')
    return value


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Settings of the auth service.

    Attributes:
        listen: where it serves rpcs and metrics.
        identity: its certificate and the trust domain.
        trust: how old the last read of the primary may be.
        database: the authority.
        kek: the key-encryption key.
        authority_key_file: the key of the MACs on rows of authority, sealed under the
            KEK; made at the first start.
        audit_file: where decisions are written, one JSON object a line.
        http_address: where it serves OAuth over HTTPS.
        http_url: where clients reach that, if it is not the service's own name and port.
        audiences: other teams' services that tokens may be for and that may watch trust.
        token_keys: KMS keys that sign tokens, each after the other; sealed ones if there are none.
        datasets_address: where the transparency log is, which is told of every change;
            not told if not set.
    """

    listen: ListenSettings
    identity: IdentitySettings
    trust: TrustSettings
    database: DatabaseSettings
    kek: KekSettings
    authority_key_file: Path | None = setting(
        "AUTHORITY_KEY_FILE",
        parse=path,
        default=None,
        help="file of the sealed MAC key; beside the key-encryption key if not set",
    )
    audit_file: Path = setting("AUDIT_FILE", parse=path, help="file that decisions are appended to")
    http_address: str = setting(
        "HTTP_LISTEN", parse=address, default="127.0.0.1:7404", help="host:port of OAuth over HTTPS"
    )
    http_url: str | None = setting(
        "HTTP_URL",
        parse=_https_url,
        default=None,
        help="URL by which clients reach that; https://auth.<trust domain>:<port> if not set",
    )
    audiences: Audiences = setting(
        "AUDIENCES",
        parse=audiences,
        default=OURS,
        help="other teams' services and their scopes: greeter=greetings.read,greetings.write;billing=bills.read",
    )
    token_keys: tuple[str, ...] = setting(
        "TOKEN_KEYS",
        parse=token_key_places,
        default=(),
        help='keys that sign tokens: "sealed" (Ed25519), or aws-kms:arn:… (ES256), several with commas between',
    )
    datasets_address: str | None = setting(
        "DATASETS_ADDRESS",
        parse=address,
        default=None,
        help="host:port of the datasets service, whose log is told of every change",
    )

    @property
    def authority_key(self) -> Path:
        """Where the sealed MAC key is.

        Raises:
            ConfigurationError: it is not said, and there is no file that it could lie beside.
        """
        file = self.authority_key_file or self.kek.beside(".authority.json")
        if file is None:
            raise ConfigurationError("CASEMATE_AUTH_AUTHORITY_KEY_FILE is needed: the key-encryption key is in no file")
        return file

    @property
    def issuer(self) -> str:
        """The `iss` of every token."""
        return f"https://auth.{self.identity.trust_domain}"
