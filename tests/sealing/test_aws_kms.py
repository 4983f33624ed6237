"""What is AWS's own: error codes, repeats, what reaches the log, and where a version number comes from."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from casemate.clock import SystemClock
from casemate.errors import CasemateError, FailedPrecondition, StoredDataUnreadable, Unavailable
from casemate.sealing.aws_kms import AwsKmsKey, AwsKmsLimits
from casemate.sealing.kek import KekStatus
from casemate.sealing.key_ring import KekWatch
from casemate.sealing.keys import DataKey, KeyContext
from tests.sealing.frames import require_no_local_holds
from tests.support.keks import AwsProvider, Fault, session

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)


class SetClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("code", "http", "expected"),
    [
        ("InvalidCiphertextException", 400, StoredDataUnreadable),
        ("IncorrectKeyException", 400, StoredDataUnreadable),
        ("DisabledException", 400, FailedPrecondition),
        ("KMSInvalidStateException", 400, FailedPrecondition),
        ("NotFoundException", 400, FailedPrecondition),
        ("AccessDeniedException", 400, FailedPrecondition),
        ("UnrecognizedClientException", 400, FailedPrecondition),
        ("SomethingNewException", 400, FailedPrecondition),
        ("ExpiredTokenException", 400, Unavailable),
        ("ThrottlingException", 400, Unavailable),
        ("LimitExceededException", 400, Unavailable),
        ("KeyUnavailableException", 500, Unavailable),
        ("DependencyTimeoutException", 503, Unavailable),
        ("KMSInternalException", 500, Unavailable),
    ],
)
async def test_each_answer_of_kms_has_its_error(
    aws: AwsProvider, code: str, http: int, expected: type[CasemateError]
) -> None:
    """What nobody knows yet is a refusal, never a success."""
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    aws.double.refusal = (code, http)
    with pytest.raises(CasemateError) as refused:
        await aws.kek.unwrap(wrapped, CONTEXT)
    assert type(refused.value) is expected
    assert (refused.value.retry_after is not None) == (code in {"ThrottlingException", "LimitExceededException"})
    aws.double.refusal = None
    assert await aws.kek.unwrap(wrapped, CONTEXT) == key


async def test_throttling_that_passes_is_not_seen(aws: AwsProvider) -> None:
    """The client repeats, within the time that a call has."""
    patient = await aws.open(aws.arn, limits=dataclasses.replace(aws.LIMITS, attempts=3))
    key, wrapped = await patient.generate_data_key(CONTEXT)
    aws.double.refusals.extend([("ThrottlingException", 400), ("KMSInternalException", 500)])
    aws.double.calls.clear()
    assert await patient.unwrap(wrapped, CONTEXT) == key
    assert aws.double.calls == ["Decrypt"] * 3


async def test_slow_kms_leaves_the_event_loop_running(aws: AwsProvider) -> None:
    """Other work goes on while a call waits; its end at the limit is in the suite."""
    _, wrapped = await aws.kek.generate_data_key(CONTEXT)
    aws.double.slow = True
    aws.double.calls.clear()
    waiting = asyncio.ensure_future(aws.kek.unwrap(wrapped, CONTEXT))
    while not aws.double.calls:
        await asyncio.sleep(0.001)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_answer_that_names_another_key_is_refused(aws: AwsProvider) -> None:
    """On the way in nothing is stored, on the way out nothing is opened."""
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    for operation in ("GenerateDataKey", "Encrypt", "Decrypt", "ReEncrypt"):
        aws.double.alters[operation] = {"KeyId": await aws.make_key()}
    for call in (
        aws.kek.generate_data_key(CONTEXT),
        aws.kek.wrap(key, CONTEXT),
        aws.kek.rewrap(wrapped, CONTEXT),
    ):
        with pytest.raises(FailedPrecondition, match="another key"):
            await call
    aws.double.alters["ReEncrypt"] = {"SourceKeyId": await aws.make_key()}
    for read in (aws.kek.unwrap, aws.kek.rewrap):
        with pytest.raises(StoredDataUnreadable, match="another key"):
            await read(wrapped, CONTEXT)
    aws.double.alters.clear()
    assert await aws.kek.unwrap(wrapped, CONTEXT) == key


async def test_generated_key_that_its_own_wrap_would_not_open_is_not_used(aws: AwsProvider) -> None:
    """KMS gives one key and wraps another: what is sealed under it could never be opened. The twin is an honest KMS."""
    aws.double.alters["GenerateDataKey"] = {"Plaintext": base64.b64encode(bytes(range(32))).decode()}
    with pytest.raises(StoredDataUnreadable, match="another key"):
        await aws.kek.generate_data_key(CONTEXT)
    aws.double.alters.clear()
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    assert await aws.kek.unwrap(wrapped, CONTEXT) == key


@pytest.mark.parametrize("length", [0, 16, 31, 33])
async def test_plaintext_of_another_length_is_no_key(aws: AwsProvider, length: int) -> None:
    """Whatever KMS says."""
    _, wrapped = await aws.kek.generate_data_key(CONTEXT)
    aws.double.alters["Decrypt"] = {"Plaintext": base64.b64encode(bytes(length)).decode()}
    with pytest.raises(StoredDataUnreadable):
        await aws.kek.unwrap(wrapped, CONTEXT)


async def test_context_reaches_kms_field_by_field(aws: AwsProvider) -> None:
    """So that a key policy can name a tenant, and CloudTrail tells whose key was used."""
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    blob = wrapped.ciphertext[4 : 4 + int.from_bytes(wrapped.ciphertext[:4])]
    fields = {
        "casemate:purpose": "dataset-rows",
        "casemate:tenant": "acme",
        "casemate:name": "digits",
        "casemate:version": "1",
        "casemate:kek-version": "1",
    }
    answer = await aws.admin.decrypt(KeyId=aws.arn, CiphertextBlob=blob, EncryptionContext=fields)
    assert answer["Plaintext"] == key.reveal()
    with pytest.raises(aws.admin.exceptions.InvalidCiphertextException):
        await aws.admin.decrypt(
            KeyId=aws.arn, CiphertextBlob=blob, EncryptionContext=fields | {"casemate:tenant": "globex"}
        )


async def test_rewrapping_is_done_by_kms_and_what_it_gives_must_open(aws: AwsProvider) -> None:
    """A new wrap of another key, or of none, would take the place of the only good one."""
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    aws.double.calls.clear()
    assert await aws.kek.unwrap(await aws.kek.rewrap(wrapped, CONTEXT), CONTEXT) == key
    assert aws.double.calls == ["ReEncrypt", "Decrypt", "Decrypt"]
    _, other = await aws.kek.generate_data_key(dataclasses.replace(CONTEXT, name="other"))
    blob = other.ciphertext[4 : 4 + int.from_bytes(other.ciphertext[:4])]
    aws.double.alters["ReEncrypt"] = {"CiphertextBlob": base64.b64encode(blob).decode()}
    with pytest.raises(StoredDataUnreadable):
        await aws.kek.rewrap(wrapped, CONTEXT)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>log in</html>",
        b"{}",
        b"[]",
        b"",
        b'{"KeyMetadata": {}, "Rotations": 7, "KeyId": 7, "Plaintext": "A", "CiphertextBlob": "A"}',
        b'{"KeyMetadata": {"KeyState": "Enabled"}, "Rotations": [], "Truncated": true}',
    ],
)
async def test_answer_that_is_not_of_kms_makes_it_unavailable(aws: AwsProvider, body: bytes) -> None:
    """A portal or a proxy says 200 in its place. The watch goes on; and KMS itself opens the key again."""
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    fresh = await aws.open(aws.arn)
    aws.double.odd = body
    for call in (
        fresh.generate_data_key(CONTEXT),
        fresh.wrap(key, CONTEXT),
        fresh.unwrap(wrapped, CONTEXT),
        fresh.rewrap(wrapped, CONTEXT),
        fresh.state(),
    ):
        with pytest.raises(Unavailable):
            await call
    assert not await KekWatch(kek=fresh, rings=()).look()
    aws.double.odd = None
    assert await fresh.unwrap(wrapped, CONTEXT) == key


@pytest.mark.parametrize("refusal", [("ThrottlingException", 400), ("AccessDeniedException", 400)], ids=str)
async def test_no_local_of_a_failed_wrap_holds_the_key(aws: AwsProvider, refusal: tuple[str, int]) -> None:
    """Whoever reports errors with their locals prints every frame on the way, the client library's too."""
    key = DataKey.generate()
    await aws.kek.wrap(key, CONTEXT)
    aws.double.refusal = refusal
    with pytest.raises(CasemateError) as failed:
        await aws.kek.wrap(key, CONTEXT)
    require_no_local_holds(failed.value, key.reveal())


async def test_no_local_of_a_wrap_that_timed_out_or_was_given_up_holds_the_key(aws: AwsProvider) -> None:
    """Cancelled from within by the limit, and from outside."""
    key = DataKey.generate()
    await aws.kek.wrap(key, CONTEXT)
    hasty = await aws.open(aws.arn, limits=aws.HASTY)
    await hasty.state()
    aws.double.slow = True
    with pytest.raises(Unavailable) as late:
        await hasty.wrap(key, CONTEXT)
    require_no_local_holds(late.value, key.reveal())
    aws.double.calls.clear()
    waiting = asyncio.ensure_future(aws.kek.wrap(key, CONTEXT))
    while not aws.double.calls:
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError) as given_up:
        await waiting
    require_no_local_holds(given_up.value, key.reveal())


async def test_no_key_reaches_the_log_at_its_most_talkative(aws: AwsProvider, caplog: pytest.LogCaptureFixture) -> None:
    """The client library writes bodies at DEBUG; asked for, they stay out."""
    caplog.set_level(logging.DEBUG)
    for name in ("botocore", "aiobotocore", "boto3", "aioboto3"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    kek = await aws.open(aws.arn)
    key, wrapped = await kek.generate_data_key(CONTEXT)
    assert await kek.unwrap(await kek.wrap(key, CONTEXT), CONTEXT) == key
    await kek.rewrap(wrapped, CONTEXT)
    logging.getLogger("asyncio").debug("the log listens")
    assert "the log listens" in caplog.text
    for spelling in (key.reveal().hex(), base64.b64encode(key.reveal()).decode(), repr(key.reveal())):
        assert spelling not in caplog.text


async def test_rotation_is_noticed_within_the_age_that_a_version_may_have(aws: AwsProvider) -> None:
    """Before that, a wrap is marked older than it is, opens, and is rewrapped once more."""
    clock = SetClock()
    opened = AwsKmsKey.open(aws.arn, clock=clock, limits=aws.LIMITS, endpoint_url=aws.double.url, session=session())
    async with opened as kek:
        assert (await kek.generate_data_key(CONTEXT))[1].kek_version == 1
        await aws.admin.rotate_key_on_demand(KeyId=aws.arn)
        key, early = await kek.generate_data_key(CONTEXT)
        assert early.kek_version == 1
        clock.seconds += aws.LIMITS.version_age.total_seconds() + 1
        assert await kek.unwrap(early, CONTEXT) == key
        late = await kek.rewrap(early, CONTEXT)
        assert late.kek_version == 2
        assert await kek.unwrap(late, CONTEXT) == key


async def test_version_is_read_over_all_pages(aws: AwsProvider) -> None:
    """A key can have more rotations than one answer lists."""
    pages = [
        {"Rotations": [{}, {}], "Truncated": True, "NextMarker": "second"},
        {"Rotations": [{}], "Truncated": False},
    ]
    asked: list[dict[str, Any]] = []

    class Paged:
        """The one operation, as its documentation has it; moto answers in one page."""

        async def list_key_rotations(self, **arguments: object) -> dict[str, Any]:
            asked.append(arguments)
            return pages[len(asked) - 1]

        async def describe_key(self, **_: object) -> dict[str, Any]:
            return {"KeyMetadata": {"KeyState": "Enabled"}}

    kek = AwsKmsKey(client=Paged(), key_arn=aws.arn, clock=SystemClock(), limits=aws.LIMITS)
    assert (await kek.state()).current_version == 4
    assert asked == [{"KeyId": aws.arn}, {"KeyId": aws.arn, "Marker": "second"}]


async def test_key_that_kms_cannot_rotate_has_one_version(aws: AwsProvider) -> None:
    """A key in a custom key store; any other refusal to list its rotations is one."""
    fresh = await aws.open(aws.arn)
    aws.double.refusals.append(("UnsupportedOperationException", 400))
    assert (await fresh.generate_data_key(CONTEXT))[1].kek_version == 1
    fresh = await aws.open(aws.arn)
    aws.double.refusals.append(("AccessDeniedException", 400))
    with pytest.raises(FailedPrecondition):
        await fresh.generate_data_key(CONTEXT)


async def test_state_is_told_before_anything_else_is_known(aws: AwsProvider) -> None:
    """A process that starts while its key is about to be deleted, or gone."""
    async with aws.fault(Fault.PENDING_DELETION):
        state = await (await aws.open(aws.arn)).state()
    assert (state.status, state.current_version) == (KekStatus.PENDING_DELETION, 0)
    async with aws.fault(Fault.DISABLED):
        state = await (await aws.open(aws.arn)).state()
    assert (state.status, state.current_version) == (KekStatus.DISABLED, 1)


@pytest.mark.parametrize("described", ["Creating", "Updating", "Unavailable", "SomethingNew"])
async def test_key_that_is_neither_on_nor_off_is_unavailable(aws: AwsProvider, described: str) -> None:
    """A custom key store that is cut off, above all."""

    class Described:
        async def describe_key(self, **_: object) -> dict[str, Any]:
            return {"KeyMetadata": {"KeyState": described}}

    kek = AwsKmsKey(client=Described(), key_arn=aws.arn, clock=SystemClock())
    with pytest.raises(Unavailable, match=described):
        await kek.state()
    assert (await aws.kek.state()).status is KekStatus.ENABLED


async def test_missing_credentials_make_it_unavailable(aws: AwsProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not found where AWS's tools look: the twin of every test above."""
    import aioboto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    limits = AwsKmsLimits(call=timedelta(seconds=30), attempts=1)
    opened = AwsKmsKey.open(
        aws.arn, clock=SystemClock(), limits=limits, endpoint_url=aws.double.url, session=aioboto3.Session()
    )
    async with opened as kek:
        with pytest.raises(Unavailable, match="NoCredentialsError"):
            await kek.state()
    assert (await aws.kek.state()).status is KekStatus.ENABLED
