"""Secrets in AWS Secrets Manager.

A rotation there moves the stage AWSCURRENT to a new version; every read asks for that
stage. Needs the extra `casemate[aws]`, and secretsmanager:GetSecretValue on the secrets.

If this fails: whoever may read these secrets reads them; AWS logs each read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

import aioboto3
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from casemate.errors import ConfigurationError, Unavailable
from casemate.sealing.aws_clients import open_client
from casemate.secret import Secret

_ATTEMPT: Final = timedelta(seconds=3)
_ATTEMPTS: Final = 3
# What the operator must mend; anything else, such as throttling, may pass.
_REFUSALS: Final = {
    "ResourceNotFoundException": "does not exist",
    "InvalidRequestException": "is marked for deletion, or has no value",
    "InvalidParameterException": "has a name that none can have",
    "AccessDeniedException": "may not be read with these credentials",
    "DecryptionFailure": "cannot be decrypted with its key",
    "ValidationException": "has a name that none can have",
}


class AwsSecrets:
    """The secrets of one account and region. Implements `secret_source.SecretSource`. Made by `open`.

    Args:
        client: aioboto3's client of Secrets Manager.
        prefix: put before every name.
    """

    __slots__ = ("_client", "_prefix")

    def __init__(self, *, client: Any, prefix: str = "") -> None:  # noqa: ANN401  # aioboto3 makes its clients at run time
        self._client = client
        self._prefix = prefix

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        region: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        session: aioboto3.Session | None = None,
    ) -> AsyncIterator[AwsSecrets]:
        """A source whose client lives as long as the block. AWS is not asked before the first read.

        Args:
            region: such as `eu-central-1`.
            prefix: put before every name, such as `casemate/production/`.
            endpoint_url: another endpoint than the region's own.
            session: holds credentials; by default from where AWS's tools look for them.
        """
        client = open_client(
            "secretsmanager",
            region=region,
            attempt=_ATTEMPT,
            attempts=_ATTEMPTS,
            endpoint_url=endpoint_url,
            session=session,
        )
        async with client as opened:
            yield cls(client=opened, prefix=prefix)

    async def read(self, name: str) -> Secret[bytes]:
        """See `SecretSource`. Text is given as UTF-8.

        Raises:
            ConfigurationError: there is no such secret, it is empty or marked for deletion, or we may not read it.
            Unavailable: AWS is not reached, throttles, or fails.
        """
        try:
            answer = await self._client.get_secret_value(SecretId=self._prefix + name, VersionStage="AWSCURRENT")
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            refusal = _REFUSALS.get(code)
            if refusal is not None:
                raise ConfigurationError(f"secret {name} {refusal}") from error
            raise Unavailable(f"secret {name}: Secrets Manager says {code}") from error
        except ParamValidationError:
            # Its text repeats what it was given.
            raise ConfigurationError(f"secret {name} has a name that none can have") from None
        except BotoCoreError as error:
            raise Unavailable(f"secret {name}: Secrets Manager is not reached: {type(error).__name__}") from error
        text = answer.get("SecretString")
        value = text.encode() if text is not None else bytes(answer.get("SecretBinary", b""))
        if not value:
            raise ConfigurationError(f"secret {name} is empty")
        return Secret(value)
