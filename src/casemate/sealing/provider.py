"""Which key-encryption key a service uses, as one setting.

`file:/path` is a local key ring; `aws-kms:arn:aws:kms:…:key/…` a KMS key; and
`pkcs11:token=…;object=…?module-path=…&pin-source=file:…` a key in a token,
written as RFC 7512 has it. The setting holds no secret: a PIN stands in a file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

from casemate.clock import Clock
from casemate.errors import ConfigurationError
from casemate.sealing.breaker import GuardedKek
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.private_files import read_private
from casemate.sealing.watched_ring import WatchedKeyRing
from casemate.secret import Secret
from casemate.settings import path, setting

_KMS_KEY: Final = re.compile(
    r"arn:aws(?:-[a-z]+)*:kms:[a-z0-9-]{1,32}:[0-9]{12}:key/(?:mrk-)?[0-9a-f-]{32,36}", re.ASCII
)
_LOGGER = logging.getLogger(__name__)
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKek:
    """A local key ring, for development and for one machine."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsKmsKek:
    """A key of AWS KMS; `endpoint_url` is None for the region's own endpoint."""

    key_arn: str
    endpoint_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Kek:
    """A key in the token called `token`, reached by the library `module`."""

    token: str
    label: str
    module: Path
    pin_file: Path


KekLocation: TypeAlias = FileKek | AwsKmsKek | Pkcs11Kek


def kek_location(value: str) -> KekLocation:
    """The parser of the setting.

    Raises:
        ValueError: with constant text, since the value may be a secret in the wrong place.
    """
    scheme, separator, rest = value.partition(":")
    if separator and scheme == "file":
        return _file(rest)
    if separator and scheme == "aws-kms":
        return _aws_kms(rest)
    if separator and scheme == "pkcs11":
        return _pkcs11(rest)
    raise ValueError('must begin with "file:", "aws-kms:" or "pkcs11:"')


@dataclass(frozen=True, slots=True, kw_only=True)
class KekSettings:
    """The key-encryption key: one of two settings, `_KEK` or the older `_KEK_FILE`."""

    kek: KekLocation | None = setting(
        "KEK", parse=kek_location, default=None, help="key-encryption key: file:…, aws-kms:… or pkcs11:…"
    )
    kek_file: Path | None = setting(
        "KEK_FILE", parse=path, default=None, help="file of a local key-encryption key, mode 0600"
    )

    def location(self) -> KekLocation:
        """Where the key is.

        Raises:
            ConfigurationError: neither setting is given, or both.
        """
        if (self.kek is None) == (self.kek_file is None):
            raise ConfigurationError("the key-encryption key is named by one of the settings KEK and KEK_FILE")
        return self.kek if self.kek is not None else FileKek(path=self.kek_file or Path())

    def problems(self, prefix: str) -> list[str]:
        """What the loader of settings says when neither is given, or both."""
        if (self.kek is None) == (self.kek_file is None):
            return [f"{prefix}KEK or {prefix}KEK_FILE: one of them names the key-encryption key, and not both"]
        return []

    def beside(self, suffix: str) -> Path | None:
        """A file that is named like the local ring but for its suffix; None if the key is in no file."""
        location = self.location()
        return location.path.with_suffix(suffix) if isinstance(location, FileKek) else None


@asynccontextmanager
async def load_kek(
    settings: KekSettings, *, clock: Clock, reload_failed: Callable[[], None] = lambda: None
) -> AsyncIterator[KeyEncryptionKey]:
    """The key-encryption key that `settings` name, usable within the block and its event loop.

    One that is reached over a network or a device is left alone for a while when it does not answer.
    A local ring is read again when its file changes.

    Args:
        settings: which key.
        clock: for ages and pauses.
        reload_failed: called when a local ring's new file is refused, and the old one stays.

    Raises:
        ConfigurationError: no key is named, its file or token is not as it must be, or its
            provider's extra is not installed. KMS is not asked before the first use.
        Unavailable: a token does not answer in time.
    """
    location = settings.location()
    if isinstance(location, FileKek):
        ring = WatchedKeyRing(location.path, reload_failed=reload_failed)
        _LOGGER.warning("the key-encryption key is in a file, for development and for one machine: %s", location.path)
        yield ring
    elif isinstance(location, AwsKmsKek):
        async with _open_aws_kms(location, clock) as kek:
            yield GuardedKek(kek, clock=clock)
    else:
        async with _open_pkcs11(location) as kek:
            yield GuardedKek(kek, clock=clock)


@asynccontextmanager
async def _open_aws_kms(location: AwsKmsKek, clock: Clock) -> AsyncIterator[KeyEncryptionKey]:
    try:
        from casemate.sealing.aws_kms import AwsKmsKey  # noqa: PLC0415  # an extra: whoever needs it has it
    except ImportError as error:
        raise ConfigurationError("AWS KMS needs the extra: pip install 'casemate[aws]'") from error
    async with AwsKmsKey.open(location.key_arn, clock=clock, endpoint_url=location.endpoint_url) as kek:
        yield kek


@asynccontextmanager
async def _open_pkcs11(location: Pkcs11Kek) -> AsyncIterator[KeyEncryptionKey]:
    try:
        from casemate.sealing.pkcs11 import Pkcs11Key  # noqa: PLC0415  # an extra, as above
        from casemate.sealing.pkcs11_token import Pkcs11Token  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError("PKCS#11 needs the extra: pip install 'casemate[pkcs11]'") from error
    pin = _read_pin(location.pin_file)
    async with Pkcs11Token.open(module=location.module, label=location.token, pin=pin) as token:
        yield Pkcs11Key(token=token, label=location.label)


def _read_pin(file: Path) -> Secret[str]:
    data = read_private(file, what="the token's PIN file")
    try:
        return Secret(data.decode().rstrip("\r\n"))
    except UnicodeDecodeError:
        # Without its cause, which quotes what it read.
        raise ConfigurationError(f"the token's PIN file is not text: {file}") from None


def _file(rest: str) -> FileKek:
    if not rest.startswith("/") or rest.startswith("//") or "\0" in rest:
        raise ValueError('must be "file:" and an absolute path')
    return FileKek(path=Path(rest))


def _aws_kms(rest: str) -> AwsKmsKek:
    arn, separator, query = rest.partition("?")
    if not _KMS_KEY.fullmatch(arn):
        raise ValueError('must be "aws-kms:" and the ARN of a key, not of an alias')
    endpoint: str | None = None
    if separator:
        name, _, endpoint = query.partition("=")
        parts = urlsplit(endpoint)
        secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        if name != "endpoint" or not secure or not parts.hostname or parts.username is not None:
            raise ValueError('takes after the ARN "?endpoint=https://…" and nothing else')
    return AwsKmsKek(key_arn=arn, endpoint_url=endpoint)


def _pkcs11(rest: str) -> Pkcs11Kek:
    named, _, query = rest.partition("?")
    path_fields, query_fields = _fields(named, ";"), _fields(query, "&")
    if set(path_fields) != {"token", "object"} or set(query_fields) != {"module-path", "pin-source"}:
        raise ValueError('must be "pkcs11:token=…;object=…?module-path=…&pin-source=file:…"')
    module, pin_file = query_fields["module-path"], query_fields["pin-source"].removeprefix("file:")
    if not all(path_fields.values()) or not module.startswith("/") or not pin_file.startswith("/"):
        raise ValueError("names no token or object, or has a module-path or pin-source that is not absolute")
    return Pkcs11Kek(
        token=path_fields["token"], label=path_fields["object"], module=Path(module), pin_file=Path(pin_file)
    )


def _fields(text: str, separator: str) -> dict[str, str]:
    """RFC 7512's attributes, unescaped; none given twice."""
    fields: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, _, value = part.partition("=")
        if name in fields:
            raise ValueError("gives one attribute twice")
        fields[name] = unquote(value)  # what is no UTF-8 becomes U+FFFD, and names nothing that exists
        if not fields[name].isprintable():
            raise ValueError("holds characters that cannot be printed")
    return fields
