"""Text from the environment to values. Every ValueError has constant text: it never repeats what was given."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from casemate.secret import Secret

_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)", re.ASCII)
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_LONGEST = timedelta(days=36_525)
_HOST = re.compile(r"\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+", re.ASCII)
_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def text(value: str) -> str:
    """The text itself, without control characters."""
    if not value.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return value


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """A parser of whole numbers from `minimum` to `maximum`, both included."""

    def parse(value: str) -> int:
        if not _DIGITS.fullmatch(value) or not minimum <= int(value) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return int(value)

    return parse


def port(value: str) -> int:
    """A TCP port, 1 to 65535."""
    return integer(1, 65535)(value)


def address(value: str) -> str:
    """`host:port`, as given; an IPv6 host stands in brackets. Port 0 lets the kernel choose."""
    host, _, number = value.rpartition(":")
    if not _HOST.fullmatch(host) or not _DIGITS.fullmatch(number) or not 0 <= int(number) <= 65535:
        raise ValueError('must be "host:port", an IPv6 host in brackets')
    return value


def duration(value: str) -> timedelta:
    """A whole number and its unit: `250ms`, `30s`, `5m`, `24h`, `7d`."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError('must be a number and a unit, such as "250ms", "30s", "5m", "24h" or "7d"')
    given = int(match[1]) * _UNITS[match[2]]
    if given > _LONGEST:
        raise ValueError("must not be longer than a century")
    return given


def path(value: str) -> Path:
    """A path; not looked at here, since some are made later."""
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return Path(value)


def boolean(value: str) -> bool:
    """`true` or `false`, spelled so: `0`, `no` and `off` have meant too many things."""
    if value not in {"true", "false"}:
        raise ValueError('must be "true" or "false"')
    return value == "true"


def secret(value: str) -> Secret[str]:
    """A value that does not show itself. Its setting may also be given as `<NAME>_FILE`."""
    return Secret(value)


def trust_domain(value: str) -> str:
    """A SPIFFE trust domain that is also a DNS suffix, since services are named `<service>.<domain>`.

    Source: SPIFFE-ID §2.1 narrowed by RFC 1123 §2.1.
    """
    if len(value) > 200 or not all(_DNS_LABEL.fullmatch(label) for label in value.split(".")):
        raise ValueError("must be a lower-case domain name")
    return value
