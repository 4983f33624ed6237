"""Secrets Manager: the real client against moto's server, which keeps versions and stages as AWS does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from casemate.errors import ConfigurationError, Unavailable
from casemate.sealing.aws_secrets import AwsSecrets
from casemate.sealing.secret_source import SecretSource, WatchedSecret
from casemate.secret import Secret

REGION = "eu-central-1"
PREFIX = "casemate/test/"
NAME = "database_password"
OLD, NEW = "canary-of-yesterday", "canary-of-today"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of this module, on a loopback port of its own."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def session() -> aioboto3.Session:
    return aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test")


@pytest.fixture
async def administrator(endpoint: str, session: aioboto3.Session) -> AsyncIterator[Any]:
    """Who makes and rotates secrets: a client beside ours."""
    async with session.client("secretsmanager", region_name=REGION, endpoint_url=endpoint) as client:
        await client.create_secret(Name=PREFIX + NAME, SecretString=OLD)
        yield client
        for secret in (await client.list_secrets(IncludePlannedDeletion=True))["SecretList"]:
            await client.delete_secret(SecretId=secret["ARN"], ForceDeleteWithoutRecovery=True)


@pytest.fixture
async def source(administrator: Any, endpoint: str, session: aioboto3.Session) -> AsyncIterator[SecretSource]:
    async with AwsSecrets.open(region=REGION, prefix=PREFIX, endpoint_url=endpoint, session=session) as secrets:
        yield secrets


async def test_text_and_binary_secrets_are_read(source: SecretSource, administrator: Any) -> None:
    """Text as UTF-8, binary as it is."""
    await administrator.create_secret(Name=PREFIX + "binary", SecretBinary=b"\x00\xff\n")
    assert await source.read(NAME) == Secret(OLD.encode())
    assert await source.read("binary") == Secret(b"\x00\xff\n")


async def test_rotation_is_picked_up_without_a_restart(source: SecretSource, administrator: Any) -> None:
    """A new version that is only pending changes nothing; once it is AWSCURRENT it is read."""
    watched = await WatchedSecret.open(source, NAME)
    pending = await administrator.put_secret_value(
        SecretId=PREFIX + NAME, SecretString=NEW, VersionStages=["AWSPENDING"]
    )
    assert not await watched.look()
    assert watched.current == Secret(OLD.encode())
    stages = (await administrator.describe_secret(SecretId=PREFIX + NAME))["VersionIdsToStages"]
    (current,) = [version for version, names in stages.items() if "AWSCURRENT" in names]
    await administrator.update_secret_version_stage(
        SecretId=PREFIX + NAME,
        VersionStage="AWSCURRENT",
        MoveToVersionId=pending["VersionId"],
        RemoveFromVersionId=current,
    )
    assert await watched.look()
    assert watched.current == Secret(NEW.encode())


async def test_secret_that_is_not_there_is_refused(source: SecretSource) -> None:
    """The twin is its neighbour; a name without the prefix is another one."""
    for name in ("missing", PREFIX + NAME):
        with pytest.raises(ConfigurationError, match="does not exist"):
            await source.read(name)
    assert await source.read(NAME) == Secret(OLD.encode())


async def test_secret_marked_for_deletion_is_refused_and_leaves_the_value_that_is_held(
    source: SecretSource, administrator: Any
) -> None:
    """Restored, it is read again."""
    watched = await WatchedSecret.open(source, NAME)
    await administrator.delete_secret(SecretId=PREFIX + NAME, RecoveryWindowInDays=7)
    with pytest.raises(ConfigurationError, match="deletion"):
        await source.read(NAME)
    assert not await watched.look()
    assert watched.current == Secret(OLD.encode())
    await administrator.restore_secret(SecretId=PREFIX + NAME)
    assert await source.read(NAME) == Secret(OLD.encode())


async def test_endpoint_that_is_not_there_is_unavailable(source: SecretSource, session: aioboto3.Session) -> None:
    """A port that nothing listens on; the twin is moto's."""
    async with AwsSecrets.open(
        region=REGION, prefix=PREFIX, endpoint_url="http://127.0.0.1:9", session=session
    ) as nowhere:
        with pytest.raises(Unavailable):
            await nowhere.read(NAME)
    assert await source.read(NAME) == Secret(OLD.encode())


class Refusing:
    """A client that fails as AWS says it may, which moto never does."""

    def __init__(self, answer: dict[str, object] | str) -> None:
        self._answer = answer

    async def get_secret_value(self, **_arguments: object) -> dict[str, object]:
        if isinstance(self._answer, str):
            raise ClientError({"Error": {"Code": self._answer, "Message": OLD}}, "GetSecretValue")
        return self._answer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ThrottlingException", Unavailable),
        ("InternalServiceError", Unavailable),
        ("ExpiredTokenException", Unavailable),
        ("AccessDeniedException", ConfigurationError),
        ("DecryptionFailure", ConfigurationError),
    ],
)
async def test_faults_of_the_service_are_told_from_those_of_the_operator(code: str, kind: type[Exception]) -> None:
    """The service's own text is not repeated; the twin answers."""
    with pytest.raises(kind) as error:
        await AwsSecrets(client=Refusing(code)).read(NAME)
    assert OLD not in str(error.value)
    assert await AwsSecrets(client=Refusing({"SecretString": OLD})).read(NAME) == Secret(OLD.encode())


@pytest.mark.parametrize("answer", [{}, {"SecretString": ""}, {"SecretBinary": b""}], ids=str)
async def test_empty_answer_is_refused(answer: dict[str, object]) -> None:
    """Never an empty password."""
    with pytest.raises(ConfigurationError, match="empty"):
        await AwsSecrets(client=Refusing(answer)).read(NAME)


async def test_planted_secret_is_in_no_log_even_at_debug(
    source: SecretSource, administrator: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """botocore writes every body to its log at DEBUG, and so it would here."""
    with caplog.at_level(logging.DEBUG):
        watched = await WatchedSecret.open(source, NAME)
        await administrator.put_secret_value(SecretId=PREFIX + NAME, SecretString=NEW)
        assert await watched.look()
        print(watched, watched.current, repr(source))
        logging.getLogger("casemate.test").debug("%r %s", watched.current, watched)
    printed = capfd.readouterr()
    everything = caplog.text + printed.out + printed.err
    assert "casemate.test" in everything
    assert "has a new value" in everything
    for canary in (OLD, NEW):
        assert canary not in everything
