"""Token keys that AWS KMS keeps: they sign there, and nothing of them is here but their public half.

KMS does not turn asymmetric keys, so an operator names one or more, and the schedule
goes from one to the next. Which one a row means stands in the row, under its MAC.

If this fails: see `casemate.sealing.aws_kms_signing`. While KMS does not sign, no token
is issued; those that live are verified as ever, since that takes the public half alone.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from casemate.clock import Clock
from casemate.errors import ConfigurationError, FailedPrecondition, StoredDataUnreadable, Unavailable
from casemate.gate.core.records import ES256
from casemate.gate.core.thumbprint import key_thumbprint
from casemate.sealing.breaker import Breaker
from casemate.sealing.provider import AwsKmsKek, kek_location
from services.auth.key_schedule import SEALED, kept_by
from services.auth.records import TokenKey
from services.auth.token_keys import SigningTokenKey

if TYPE_CHECKING:
    from casemate.sealing.aws_kms_signing import AwsKmsSigningKey


def token_key_places(value: str) -> tuple[str, ...]:
    """The parser of the setting: `sealed`, or `aws-kms:arn:…` once or several times, with commas between.

    Raises:
        ValueError: with constant text.
    """
    if value == SEALED:
        return ()
    places = tuple(value.split(","))
    if len(set(places)) != len(places):
        raise ValueError("names one key twice")
    if not all(place.startswith("aws-kms:") and isinstance(kek_location(place), AwsKmsKek) for place in places):
        raise ValueError('must be "sealed", or "aws-kms:" and the ARN of a key, with commas between several')
    return places


class KmsTokenKeys:
    """Makes and opens them.

    Args:
        stack: closes the clients; one is made for a key when it is first used.
        clock: for the pauses of a KMS that does not answer.
        options: of `AwsKmsSigningKey.open`: limits, or a session.
    """

    def __init__(self, *, stack: AsyncExitStack, clock: Clock, **options: Any) -> None:  # noqa: ANN401  # as named above
        self._stack = stack
        self._clock = clock
        self._options = options
        self._opened: dict[str, AwsKmsSigningKey] = {}

    async def generate(self, place: str, *, now: datetime) -> TokenKey:
        """A new active key's row: which KMS key it is. One call of KMS.

        Raises:
            FailedPrecondition: it is no signing key on P-256, or KMS refuses.
            Unavailable: KMS does not answer.
            ConfigurationError: the extra is not installed.
        """
        public_key = await (await self._key(place)).public_key()
        return TokenKey(
            kid=key_thumbprint(public_key),
            algorithm=ES256,
            public_key=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            sealed_private_key=place.encode(),
            state="active",
            created_at=now,
        )

    async def open(self, record: TokenKey) -> SigningTokenKey:
        """A stored key, ready to sign. KMS is not asked yet: a service that cannot sign can still verify and revoke.

        Raises:
            StoredDataUnreadable: the row names no KMS key, or another than its `kid`.
            ConfigurationError: the extra is not installed.
        """
        public_key = load_der_public_key(record.public_key)
        if not isinstance(public_key, EllipticCurvePublicKey) or key_thumbprint(public_key) != record.kid:
            raise StoredDataUnreadable(f"token key {record.kid} is not the key that its row names")
        key, breaker = await self._key(kept_by(record)), Breaker("the KMS of the token key", clock=self._clock)

        async def sign(message: bytes) -> bytes:
            trying = breaker.admit()
            try:
                return await breaker.watch(key.sign(message, public_key=public_key), trying=trying)
            except FailedPrecondition as error:
                # To the caller it is a service that cannot sign now; the operator reads why.
                raise Unavailable(f"token key {record.kid}: {error}") from error

        return SigningTokenKey(kid=record.kid, algorithm=ES256, sign=sign)

    async def _key(self, place: str) -> AwsKmsSigningKey:
        try:
            from casemate.sealing.aws_kms_signing import AwsKmsSigningKey  # noqa: PLC0415  # an extra: who needs it has it
        except ImportError as error:
            raise ConfigurationError("token keys in AWS KMS need the extra: pip install 'casemate[aws]'") from error
        if place not in self._opened:
            try:
                location = cast("AwsKmsKek", kek_location(place))
            except ValueError as error:
                raise StoredDataUnreadable("a token key's row names no KMS key") from error
            opening = AwsKmsSigningKey.open(location.key_arn, endpoint_url=location.endpoint_url, **self._options)
            self._opened[place] = await self._stack.enter_async_context(opening)
        return self._opened[place]
