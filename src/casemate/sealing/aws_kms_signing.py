"""Signatures by a key that never leaves AWS KMS: ECDSA on P-256 with SHA-256, as a JWS carries them.

KMS answers in DER; a JWS wants the two numbers, 32 bytes each (RFC 7518 section 3.4).
What came back is verified before it goes on, so an answer of another key, or a damaged
one, is never given to anybody.

Needs the extra `casemate[aws]`, and of the key kms:GetPublicKey and kms:Sign. KMS signs
some hundreds of times a second for an account; its quota is AWS's to raise.

If this fails: whoever may call Sign on this key mints tokens for every audience. They
are bound to a certificate that the thief must hold, and KMS logs every call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import aioboto3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate.errors import FailedPrecondition, Reason, Unavailable
from casemate.sealing.aws_kms import AwsKmsLimits, answered, call_kms, open_kms

SIGNING_LIMITS: Final = AwsKmsLimits(call=timedelta(seconds=3), attempt=timedelta(seconds=2), attempts=2)
"""A token is waited for."""

_ALGORITHM: Final = "ECDSA_SHA_256"
_NUMBER_BYTES: Final = 32


class AwsKmsSigningKey:
    """One asymmetric KMS key, by its ARN. Made by `open`, and used in the event loop where it was opened.

    Args:
        client: aioboto3's client of KMS.
        key_arn: the ARN of the key.
        limits: how long to wait.
    """

    __slots__ = ("_arn", "_client", "_limits", "_public_key")

    def __init__(self, *, client: Any, key_arn: str, limits: AwsKmsLimits = SIGNING_LIMITS) -> None:  # noqa: ANN401  # aioboto3 makes its clients at run time
        self._client = client
        self._arn = key_arn
        self._limits = limits
        self._public_key: EllipticCurvePublicKey | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        key_arn: str,
        *,
        limits: AwsKmsLimits = SIGNING_LIMITS,
        endpoint_url: str | None = None,
        session: aioboto3.Session | None = None,
    ) -> AsyncIterator[AwsKmsSigningKey]:
        """The key behind `key_arn`, with a client that lives as long as the block. KMS is not asked before its use."""
        async with open_kms(key_arn, limits=limits, endpoint_url=endpoint_url, session=session) as client:
            yield cls(client=client, key_arn=key_arn, limits=limits)

    async def public_key(self) -> EllipticCurvePublicKey:
        """The public half; KMS is asked once.

        Raises:
            Unavailable: KMS does not answer, or throttles.
            FailedPrecondition: `KEY_NOT_ACTIVE`: KMS refuses, or the key is no signing key on P-256.
        """
        if self._public_key is None:
            answer = await call_kms(self._client.get_public_key, within=self._limits.call, KeyId=self._arn)
            if answer.get("KeyUsage") != "SIGN_VERIFY" or answered(answer, "KeyId", str) != self._arn:
                raise _no_signing_key(self._arn)
            self._public_key = _on_p256(answered(answer, "PublicKey", bytes), self._arn)
        return self._public_key

    async def sign(self, message: bytes, *, public_key: EllipticCurvePublicKey) -> bytes:
        """The signature over a message: 64 bytes, r and s. One call of KMS, and one verification here.

        Args:
            message: what is signed; KMS hashes it, and takes 4,096 bytes at most, as a token does.
            public_key: the half that the signature is for, as those who verify it know it.

        Raises:
            Unavailable: KMS does not answer, throttles, or answers with what does not verify.
            FailedPrecondition: `KEY_NOT_ACTIVE`: KMS refuses the key, or us.
        """
        answer = await call_kms(
            self._client.sign,
            within=self._limits.call,
            KeyId=self._arn,
            Message=message,
            MessageType="RAW",
            SigningAlgorithm=_ALGORITHM,
        )
        signature = answered(answer, "Signature", bytes)
        try:
            public_key.verify(signature, message, ECDSA(SHA256()))
            r, s = decode_dss_signature(signature)
        except (InvalidSignature, ValueError):
            raise Unavailable(f"KMS answered for {self._arn} with a signature that does not verify") from None
        return r.to_bytes(_NUMBER_BYTES) + s.to_bytes(_NUMBER_BYTES)


def _on_p256(der: bytes, arn: str) -> EllipticCurvePublicKey:
    try:
        key = load_der_public_key(der)
    except ValueError:
        raise _no_signing_key(arn) from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise _no_signing_key(arn)
    return key


def _no_signing_key(arn: str) -> FailedPrecondition:
    return FailedPrecondition(f"{arn} is not a key of the spec ECC_NIST_P256 for signing", reason=Reason.KEY_NOT_ACTIVE)
