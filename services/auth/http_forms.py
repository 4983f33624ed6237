"""What a client sends to the HTTPS face: one form, each parameter once, and how it proves itself.

Source: RFC 6749 sections 2.3 and 3.2, RFC 7523 section 2.2, RFC 8705 section 2, RFC 8707 section 2.

If this fails: two readers of one request find two different ones. Nobody stands
between a client and us, and the client is proven by what is found here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from casemate.errors import Reason, Unauthenticated
from casemate.secret import Secret
from services.auth.client_authentication import Credential
from services.auth.http_errors import OAuthRefusal

MAX_BODY_BYTES: Final = 32_768
"""Two JWTs of 8,192 characters, escaped, and more around them."""
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_MAX_PARAMETERS: Final = 32
_FORM: Final = "application/x-www-form-urlencoded"
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
_TARGETS: Final = frozenset({"audience", "resource"})


def parse_form(content_type: str, body: bytes) -> dict[str, str]:
    """The parameters, without those that are empty (RFC 6749 section 3.2).

    Raises:
        OAuthRefusal: it is no form, or has a parameter twice.
    """
    if content_type != _FORM and not _is_form(content_type):
        raise OAuthRefusal("invalid_request", "not a form")
    if _BROKEN_ESCAPE.search(body):
        raise OAuthRefusal("invalid_request", "a broken escape")
    try:
        pairs = _pairs(body.decode("ascii"))
    except ValueError as error:
        raise OAuthRefusal("invalid_request", "not a form") from error
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in {before for before, _ in pairs[:at]})
        # Of targets more than one may be asked for (RFC 8707 section 2); our tokens have one audience.
        raise OAuthRefusal("invalid_target" if twice in _TARGETS else "invalid_request", f"{len(pairs)} with a twin")
    return {name: value for name, value in pairs if value}


def _is_form(content_type: str) -> bool:
    kind, _, parameter = content_type.partition(";")
    return kind.strip().lower() == _FORM and parameter.strip().lower() in {"", "charset=utf-8", 'charset="utf-8"'}


def _pairs(text: str) -> list[tuple[str, str]]:
    """Names and values; a text without escapes, as most are, is cut without looking for them.

    Raises:
        ValueError: it is no form, or has too many parameters.
    """
    if "%" in text or "+" in text:
        return parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    cut = [pair.partition("=") for pair in text.split("&")] if text else []
    if len(cut) > _MAX_PARAMETERS or not all(sign for _, sign, _ in cut):
        raise ValueError("not a form")
    return [(name, value) for name, _, value in cut]


def require(form: Mapping[str, str], name: str) -> str:
    """A parameter that must be there.

    Raises:
        OAuthRefusal: it is not.
    """
    value = form.get(name)
    if value is None:
        raise OAuthRefusal("invalid_request", f"{name} is missing")
    return value


def scopes_of(form: Mapping[str, str]) -> tuple[str, ...]:
    """The scopes that are asked for, in order; none if none are.

    Raises:
        OAuthRefusal: `invalid_scope`: it is no list of scopes (RFC 6749 section 3.3).
    """
    value = form.get("scope")
    if value is None:
        return ()
    if _SCOPE.fullmatch(value) is None:
        raise OAuthRefusal("invalid_scope", "not a list of scopes")
    return tuple(value.split(" "))


def audience_of(form: Mapping[str, str], *, trust_domain: str) -> str:
    """The one service, or client, that a token is to be for: by name (`audience`), by URL (`resource`), or by both.

    A service's URL is `https://<service>.<trust domain>`.

    Raises:
        OAuthRefusal: `invalid_target`: the URL is no service's, or the two differ; `invalid_request`: there is none.
    """
    named, url = form.get("audience"), form.get("resource")
    if url is None:
        return require(form, "audience")
    host = url.removeprefix("https://")
    service = host.removesuffix(f".{trust_domain}")
    if host in (url, service) or not service or named not in (None, service):
        raise OAuthRefusal("invalid_target", "the resource is no service's, or another than the audience")
    return service


def credential_of(form: Mapping[str, str], authorization: str | None) -> Credential:
    """What a client shows besides its certificate; nothing if it is the certificate's own.

    Raises:
        OAuthRefusal: more than one way at once (RFC 6749 section 2.3), or an assertion of another type.
        Unauthenticated: `CLIENT_UNKNOWN`: a header that is not `Basic`, or does not read as it.
    """
    client_id, secret, assertion = form.get("client_id", ""), form.get("client_secret"), form.get("client_assertion")
    if authorization is None and secret is None and assertion is None and "client_assertion_type" not in form:
        return Credential(client_id=client_id)
    shown = [value is not None for value in (authorization, secret, assertion)]
    if sum(shown) > 1:
        raise OAuthRefusal("invalid_request", "more than one way to authenticate")
    if (assertion is None) != ("client_assertion_type" not in form):
        raise OAuthRefusal("invalid_request", "an assertion without its type, or a type alone")
    if assertion is not None and form["client_assertion_type"] != ASSERTION_TYPE:
        raise OAuthRefusal("invalid_request", "an assertion of another type")
    if authorization is not None:
        named, secret = _basic(authorization)
        if client_id not in ("", named):
            raise OAuthRefusal("invalid_request", "two clients at once")
        client_id = named
    return Credential(
        client_id=client_id,
        assertion=None if assertion is None else Secret(assertion),
        secret=None if secret is None else Secret(secret),
    )


def _basic(authorization: str) -> tuple[str, str]:
    """Client and secret of `Basic`, each escaped as in a form (RFC 6749 section 2.3.1)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError("another scheme")
        client_id, separator, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        if not separator:
            raise ValueError("no secret")
        return unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict")
    except (ValueError, binascii.Error):
        # Without its cause, which may quote the secret.
        raise Unauthenticated("not a Basic credential", reason=Reason.CLIENT_UNKNOWN) from None
