"""A key-encryption key in AWS KMS.

The context of a wrap is the EncryptionContext, field by field, so a key policy can
hold a role to one tenant (`kms:EncryptionContext:casemate:tenant`). CloudTrail
keeps these fields in clear text: names of tenants and datasets, never data.

Needs the extra `casemate[aws]`, and of the key kms:DescribeKey, kms:GenerateDataKey,
kms:Encrypt, kms:Decrypt, kms:ReEncryptFrom, kms:ReEncryptTo and kms:ListKeyRotations.

If this fails: whoever may call Decrypt on this key and has the database opens the
rows of one service. KMS logs every such call, and the other services' keys differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import aioboto3
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from casemate.clock import Clock
from casemate.errors import CasemateError, FailedPrecondition, Reason, StoredDataUnreadable, Unavailable
from casemate.sealing.aws_clients import open_client
from casemate.sealing.encoding import Reader, length_prefixed
from casemate.sealing.kek import KekState, KekStatus
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey

A = TypeVar("A")
E = TypeVar("E", bound=BaseException)

_MAX_BLOB_BYTES: Final = 6144  # Decrypt takes no more
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_COMMITMENT_LABEL: Final = b"casemate/aws-kms-commitment@v1\x00"
_COMMITMENT_BYTES: Final = 32

_DAMAGED: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "LimitExceededException"}
)
_PASSING: Final = frozenset({"ExpiredTokenException", "RequestExpired", "RequestTimeout"})
_GONE: Final = "NotFoundException"
_NEVER_ROTATES: Final = "UnsupportedOperationException"  # a key in a custom key store, for one
_STATUS: Final = {
    "Enabled": KekStatus.ENABLED,
    "Disabled": KekStatus.DISABLED,
    "PendingImport": KekStatus.DISABLED,
    "PendingDeletion": KekStatus.PENDING_DELETION,
    "PendingReplicaDeletion": KekStatus.PENDING_DELETION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsKmsLimits:
    """How long to wait for KMS.

    Attributes:
        call: for one call of ours, its repeats included.
        attempt: for one connection, and for one answer.
        attempts: how often a call is tried that failed in passing.
        version_age: how old the known number of the current version may be.
            Until then a key wrapped after a rotation is marked with the number
            before it; it opens all the same, and the next rewrap marks it anew.
    """

    call: timedelta = timedelta(seconds=10)
    attempt: timedelta = timedelta(seconds=3)
    attempts: int = 3
    version_age: timedelta = timedelta(seconds=60)


DEFAULT_LIMITS: Final = AwsKmsLimits()


class AwsKmsKey:
    """One symmetric KMS key, by its ARN. Implements `kek.KeyEncryptionKey`.

    Made by `open`, and used in the event loop where it was opened. A version is
    one key material: KMS keeps the old ones, and a wrap names the one that was
    current at least. The data key is committed to beside KMS's ciphertext, so an
    answer that holds another key's plaintext is refused.
    """

    __slots__ = ("_arn", "_client", "_clock", "_limits", "_version", "_version_read_at")

    def __init__(self, *, client: Any, key_arn: str, clock: Clock, limits: AwsKmsLimits = DEFAULT_LIMITS) -> None:  # noqa: ANN401  # aioboto3 makes its clients at run time
        self._client = client
        self._arn = key_arn
        self._clock = clock
        self._limits = limits
        self._version = 0
        self._version_read_at: float | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        key_arn: str,
        *,
        clock: Clock,
        limits: AwsKmsLimits = DEFAULT_LIMITS,
        endpoint_url: str | None = None,
        session: aioboto3.Session | None = None,
    ) -> AsyncIterator[AwsKmsKey]:
        """The key behind `key_arn`, with a client that lives as long as the block.

        KMS is not asked before the first call. Credentials come from `session`,
        by default from where AWS's tools look for them.

        Args:
            key_arn: the ARN of a key, not of an alias: an alias can be pointed at another key.
            clock: for the age of what is known.
            limits: how long to wait.
            endpoint_url: another endpoint than the region's own.
            session: another session than the default one.
        """
        client = open_kms(key_arn, limits=limits, endpoint_url=endpoint_url, session=session)
        async with client as opened:
            yield cls(client=opened, key_arn=key_arn, clock=clock, limits=limits)

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """See `kek.KeyEncryptionKey`. The key comes from KMS's generator.

        Costs two calls: what KMS would open is compared with what it gave, before anything is sealed
        that could otherwise never be opened again.
        """
        version = await self._current_version()
        answer = await self._call(
            self._client.generate_data_key,
            KeyId=self._arn,
            KeySpec="AES_256",
            EncryptionContext=_encryption_context(context, version),
        )
        key = _taken_key(answer)
        wrapped = self._wrapped(answer, _commitment(key, context), context, version)
        await self.unwrap(wrapped, context)
        return key, wrapped

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`."""
        version = await self._current_version()
        answer = await self._call(
            self._client.encrypt,
            KeyId=self._arn,
            Plaintext=key.reveal(),
            EncryptionContext=_encryption_context(context, version),
        )
        return self._wrapped(answer, _commitment(key, context), context, version)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """See `kek.KeyEncryptionKey`."""
        wrapped.require(kek_id=self._arn, context=context)
        blob, commitment = _parse(wrapped.ciphertext)
        answer = await self._call(
            self._client.decrypt,
            KeyId=self._arn,
            CiphertextBlob=blob,
            EncryptionContext=_encryption_context(context, wrapped.kek_version),
        )
        key = _taken_key(answer)
        is_ours = answered(answer, "KeyId", str) == self._arn
        if not is_ours or not hmac.compare_digest(commitment, _commitment(key, context)):
            raise StoredDataUnreadable(f"KMS answered for {context} with another key than was wrapped")
        return key

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """See `kek.KeyEncryptionKey`. KMS does it inside; then it must open what it gave.

        The new wrap takes the place of the old one, for ever: what does not open to the same key is none.
        """
        wrapped.require(kek_id=self._arn, context=context)
        blob, commitment = _parse(wrapped.ciphertext)
        version = await self._current_version()
        answer = await self._call(
            self._client.re_encrypt,
            CiphertextBlob=blob,
            SourceKeyId=self._arn,
            SourceEncryptionContext=_encryption_context(context, wrapped.kek_version),
            DestinationKeyId=self._arn,
            DestinationEncryptionContext=_encryption_context(context, version),
        )
        if answered(answer, "SourceKeyId", str) != self._arn:
            raise StoredDataUnreadable(f"KMS rewrapped for {context} what another key had wrapped")
        rewrapped = self._wrapped(answer, commitment, context, version)
        await self.unwrap(rewrapped, context)
        return rewrapped

    async def state(self) -> KekState:
        """See `kek.KeyEncryptionKey`. Asks KMS each time, for the version too."""
        possible = frozenset(KekStatus)
        try:
            answer = await self._call(self._client.describe_key, KeyId=self._arn)
        except FailedPrecondition as error:
            if _code(error.__cause__) != _GONE:
                raise
            return KekState(kek_id=self._arn, current_version=0, status=KekStatus.DESTROYED, possible=possible)
        described = answered(answered(answer, "KeyMetadata", dict), "KeyState", str)
        status = _STATUS.get(described)
        if status is None:  # Creating, Updating, Unavailable: a key store that is cut off
            raise Unavailable(f"KMS key {self._arn} is {described}")
        try:
            version = await self._read_version()
        except FailedPrecondition:
            if status is KekStatus.ENABLED:
                raise
            version = self._version  # KMS lists no rotations of a key that it is to delete.
        return KekState(kek_id=self._arn, current_version=version, status=status, possible=possible)

    async def _current_version(self) -> int:
        """The number of the current version, read again once it is `version_age` old.

        It is read before KMS wraps, so a wrap never claims to be newer than it is.
        """
        age = self._limits.version_age.total_seconds()
        if self._version_read_at is None or self._clock.monotonic() - self._version_read_at > age:
            return await self._read_version()
        return self._version

    async def _read_version(self) -> int:
        read_at = self._clock.monotonic()
        rotations, page = 0, dict[str, str]()
        while True:
            try:
                answer = await self._call(self._client.list_key_rotations, KeyId=self._arn, **page)
            except FailedPrecondition as error:
                if _code(error.__cause__) != _NEVER_ROTATES:
                    raise
                break
            rotations += len(answered(answer, "Rotations", list))
            if not answer.get("Truncated"):
                break
            page = {"Marker": answered(answer, "NextMarker", str)}
        self._version, self._version_read_at = rotations + 1, read_at
        return self._version

    def _wrapped(self, answer: Mapping[str, Any], commitment: bytes, context: KeyContext, version: int) -> WrappedKey:
        if answered(answer, "KeyId", str) != self._arn:
            raise FailedPrecondition(f"KMS wrapped under another key than {self._arn}", reason=Reason.KEY_NOT_ACTIVE)
        body = length_prefixed(answered(answer, "CiphertextBlob", bytes), commitment)
        return WrappedKey(
            kek_id=self._arn,
            kek_version=version,
            ciphertext=body + hashlib.sha256(body).digest(),
            context_sha256=context.sha256(),
        )

    # Not a coroutine: its frame would hold the arguments, a plain key among them, in a traceback.
    def _call(
        self, operation: Callable[..., Awaitable[dict[str, Any]]], **arguments: object
    ) -> Awaitable[dict[str, Any]]:
        return call_kms(operation, within=self._limits.call, **arguments)


def open_kms(
    key_arn: str, *, limits: AwsKmsLimits, endpoint_url: str | None = None, session: aioboto3.Session | None = None
) -> AbstractAsyncContextManager[Any]:
    """A client of KMS in a key's region; see `aws_clients.open_client`."""
    return open_client(
        "kms",
        region=key_arn.split(":")[3],
        attempt=limits.attempt,
        attempts=limits.attempts,
        endpoint_url=endpoint_url,
        session=session,
    )


async def call_kms(
    operation: Callable[..., Awaitable[dict[str, Any]]], *, within: timedelta, **arguments: object
) -> dict[str, Any]:
    """What KMS answers to one call.

    Raises:
        Unavailable: it throttles, fails, does not answer within the time, or answers what is no answer.
        FailedPrecondition: `KEY_NOT_ACTIVE`: it refuses the key, or us.
        StoredDataUnreadable: it does not open what it was given.
    """
    try:
        async with asyncio.timeout(within.total_seconds()):
            answer = await operation(**arguments)
    except ParamValidationError as error:
        _without_frames(error)
        # Ours alone can be wrong here, and its text may quote what we passed.
        raise RuntimeError(f"a call to KMS is malformed: {type(error).__name__}") from None
    except ClientError as error:
        raise _translated(error) from _without_frames(error)
    except (BotoCoreError, OSError) as error:  # OSError: TimeoutError is one
        raise Unavailable(f"KMS is not reachable in time: {type(error).__name__}") from _without_frames(error)
    except Exception as error:  # noqa: BLE001  # a parser's own, of which the library has many
        # What came is no answer of KMS, but a proxy's, say. Without the cause, whose text may quote it.
        _without_frames(error)
        raise Unavailable(f"KMS gives no answer that can be read: {type(error).__name__}") from None
    except BaseException as error:  # cancelled
        _without_frames(error)
        raise
    finally:
        arguments.clear()
    if not isinstance(answer, dict):
        raise Unavailable("KMS gives no answer that can be read")
    return answer


def answered(answer: Mapping[str, Any], name: str, kind: type[A]) -> A:
    """A field of an answer.

    Raises:
        Unavailable: it is not there, or of another type: something else than KMS answers in its place.
    """
    value = answer.get(name)
    if not isinstance(value, kind):
        raise Unavailable(f"KMS gives an answer without {name}")
    return value


def _taken_key(answer: dict[str, Any]) -> DataKey:
    """The plain key, out of the answer: whoever fails later has the answer in its frame."""
    answered(answer, "Plaintext", bytes)
    return DataKey(answer.pop("Plaintext"))


def _without_frames(error: E) -> E:
    """The error, and those behind it, without their tracebacks: the library's frames hold the call's arguments."""
    behind: list[BaseException | None] = [error]
    seen: set[int] = set()
    while behind:
        one = behind.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            behind += [one.__cause__, one.__context__]
    return error


def _encryption_context(context: KeyContext, kek_version: int) -> dict[str, str]:
    """The context as KMS takes it. An empty field is left out, which no other value can be taken for."""
    fields = {
        "casemate:purpose": context.purpose,
        "casemate:tenant": context.tenant,
        "casemate:name": context.name,
        "casemate:version": str(context.version),
        "casemate:kek-version": str(kek_version),
    }
    return {name: value for name, value in fields.items() if value}


def _commitment(key: DataKey, context: KeyContext) -> bytes:
    """32 bytes that only this key has, and from which nobody gets it back."""
    info = _COMMITMENT_LABEL + length_prefixed(context.to_bytes())
    return HKDFExpand(algorithm=hashes.SHA512(), length=_COMMITMENT_BYTES, info=info).derive(key.reveal())


def _parse(ciphertext: bytes) -> tuple[bytes, bytes]:
    """KMS's ciphertext and the commitment beside it.

    KMS may answer AccessDenied to damaged bytes, since they name its key. The
    digest tells damage, for which someone is paged, from a refusal.
    """
    body, digest = ciphertext[:-_DIGEST_BYTES], ciphertext[-_DIGEST_BYTES:]
    if not hmac.compare_digest(hashlib.sha256(body).digest(), digest):
        raise StoredDataUnreadable("a wrapped key is damaged")
    reader = Reader(body, what="a wrapped key")
    blob, commitment = reader.prefixed(), reader.prefixed()
    reader.end()
    if not 0 < len(blob) <= _MAX_BLOB_BYTES or len(commitment) != _COMMITMENT_BYTES:
        raise StoredDataUnreadable("a wrapped key has a field of the wrong length")
    return blob, commitment


def _code(error: BaseException | None) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _translated(error: ClientError) -> CasemateError:
    """What KMS answered, as one of ours. An answer that we do not know is a refusal."""
    code, http = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _DAMAGED:
        return StoredDataUnreadable(f"KMS does not open a wrapped key: {code}")
    if code in _THROTTLED:
        return Unavailable(f"KMS throttles: {code}", retry_after=timedelta(seconds=1))
    if code in _PASSING or http >= 500:
        return Unavailable(f"KMS cannot answer: {code}")
    return FailedPrecondition(f"KMS refuses the key: {code}", reason=Reason.KEY_NOT_ACTIVE)
